"""The gate by least squares: exact on log-linear shares, floored, invariant to what softmax cannot see."""

import numpy as np
import pytest

from mixtura.classical import LogPosteriorGate, MoERegressor
from mixtura.classical.data import Data
from mixtura.classical.gates.log_posterior import log_targets
from mixtura.classical.softmax import log_softmax
from mixtura.errors import UserError
from tests.classical.samples import switching


def _data(n_samples=50, seed=0):
    X = np.random.default_rng(seed).normal(size=(n_samples, 2))
    return Data(X=X, y=X[:, :1], sample_weight=np.ones(n_samples))


def test_log_linear_shares_are_fitted_exactly_whatever_the_rows_weigh():
    data = _data()
    coef = np.array([[1.0, -0.5], [0.0, 0.5], [-1.0, 0.0]])
    log_share = log_softmax(data.X @ coef.T)
    weight = np.random.default_rng(1).uniform(0.1, 2, size=50)
    gate = LogPosteriorGate(ridge=0.0, floor=1e-12).bind(data, 3).fit(weight[:, None] * np.exp(log_share), None)
    np.testing.assert_allclose(gate.log_proba(data.X), log_share, atol=1e-9)
    np.testing.assert_allclose(gate.coef, coef - coef.mean(axis=0), atol=1e-9)


def test_targets_are_floored_logarithms_without_their_mean():
    weights = np.array([[2.0, 0.0], [0.0, 0.0]])
    targets = log_targets(weights, weights.sum(axis=1), floor=1e-4)
    np.testing.assert_allclose(targets, [[np.log(1e2), -np.log(1e2)], [0, 0]])


def test_a_flat_mixture_takes_it_and_keeps_the_best():
    X, y, right = switching(800)
    model = MoERegressor(2, gate=LogPosteriorGate(), random_state=0).fit(X, y)
    assert model.objective_ == pytest.approx(max(step.objective for step in model.history_))
    np.testing.assert_allclose(np.sort(model.experts_.coef[:, 0, 0]), [-3, 2], atol=0.15)
    agree = (model.gate_proba(X).argmax(axis=1) == right).mean()
    assert max(agree, 1 - agree) > 0.85


def test_settings_are_checked():
    for name in ("ridge", "floor"):
        with pytest.raises(UserError, match=name):
            LogPosteriorGate(**{name: -1.0}).bind(_data(), 2)
