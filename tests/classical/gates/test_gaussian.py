import numpy as np
import pytest
from scipy.stats import multivariate_normal

from mixtura.classical import GaussianGate, MoERegressor
from mixtura.classical.data import Data
from mixtura.errors import UserError


def blobs(n_samples=900):
    rng = np.random.default_rng(0)
    side = rng.uniform(size=n_samples) < 1 / 3
    X = rng.normal(size=(n_samples, 2)) * [1.0, 20.0] + np.where(side, 4.0, -4.0)[:, None] * [1.0, 10.0]
    y = np.where(side, X[:, 0], -X[:, 0]) + 0.1 * rng.normal(size=n_samples)
    return X, y, side


@pytest.mark.parametrize("covariance", ["full", "diagonal", "shared"])
def test_the_generating_normals_come_back(covariance):
    X, y, side = blobs()
    model = MoERegressor(2, gate=GaussianGate(covariance), random_state=0).fit(X, y)
    gate, k = model.gate_, model.gate_.log_weight.argmin()
    assert np.exp(gate.log_weight[k]) == pytest.approx(side.mean(), abs=0.01)
    np.testing.assert_allclose(gate.mean[k] * gate.scale + gate.center, X[side].mean(axis=0), rtol=0.05)
    spread = np.sqrt(np.diagonal(gate.covariance, axis1=1, axis2=2)) * gate.scale
    np.testing.assert_allclose(spread, [[1.0, 20.0]] * 2, rtol=0.12)
    assert ((model.gate_proba(X).argmax(axis=1) == k) == side).mean() > 0.99


def test_the_joint_density_is_that_of_scipy():
    X, y, _ = blobs(60)
    gate = MoERegressor(2, gate="gaussian", random_state=0).fit(X, y).gate_
    for k in range(2):
        mean = gate.mean[k] * gate.scale + gate.center
        covariance = gate.covariance[k] * np.outer(gate.scale, gate.scale)
        expected = gate.log_weight[k] + multivariate_normal(mean, covariance).logpdf(X)
        np.testing.assert_allclose(gate.log_joint(X)[:, k], expected)


def test_criteria_are_of_the_likelihood_that_em_maximises():
    X, y, _ = blobs(200)
    model = MoERegressor(2, gate="gaussian", random_state=0).fit(X, y)
    assert model.aic(X, y) == pytest.approx(2 * model.n_parameters_ - 2 * model.log_likelihood_)
    assert model.log_density(X, y).sum() > model.log_likelihood_ + 100


def test_parameters_are_counted():
    data = Data(X=np.random.default_rng(0).normal(size=(30, 3)), y=np.zeros((30, 1)), sample_weight=np.ones(30))
    counts = {}
    for covariance in ("full", "diagonal", "shared"):
        trainer = GaussianGate(covariance).bind(data, 2)
        counts[covariance] = trainer.fit(np.full((30, 2), 0.5), None).n_parameters
    assert counts == {"full": 1 + 6 + 12, "diagonal": 1 + 6 + 6, "shared": 1 + 6 + 6}


def test_dependent_columns_are_floored_and_finite():
    x = np.linspace(-1, 1, 40)
    model = MoERegressor(2, gate="gaussian", random_state=0).fit(
        np.column_stack([x, 2 * x]), np.abs(x) + 0.1 * np.sin(9 * x)
    )
    assert np.isfinite(model.log_likelihood_)
    assert np.linalg.eigvalsh(model.gate_.covariance).min() >= 1e-4 * (1 - 1e-9)


def test_a_wrong_covariance_is_refused():
    with pytest.raises(UserError, match="expected covariance one of full, diagonal, shared"):
        MoERegressor(gate=GaussianGate("tied")).fit([[0.0], [1.0]], [0.0, 1.0])
