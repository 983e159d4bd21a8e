import numpy as np
import pytest
from sklearn.preprocessing import PolynomialFeatures

from mixtura.classical import MoERegressor, SoftmaxGate
from mixtura.classical.gates.softmax import ConstantFitted
from mixtura.errors import UserError
from tests.classical.samples import switching


def test_the_generating_gate_comes_back():
    X, y, _ = switching(4000)
    model = MoERegressor(2, gate=SoftmaxGate(ridge=0.0), random_state=0).fit(X, y)
    right = model.experts_.coef[:, 0, 0].argmin()
    slope = model.gate_.coef[right] - model.gate_.coef[1 - right]
    assert slope.item() == pytest.approx(8.0, rel=0.15)
    constant = model.gate_.intercept[right] - model.gate_.intercept[1 - right]
    assert abs(constant) < 0.3
    assert model.gate_.n_parameters == 2


def ring(n_samples=500):
    rng = np.random.default_rng(0)
    X = rng.uniform(-1, 1, size=(n_samples, 2))
    inside = (X**2).sum(axis=1) < 0.4
    return X, np.where(inside, 2.0, -2.0) + 0.3 * X[:, 0] + 0.1 * rng.normal(size=n_samples), inside


@pytest.mark.parametrize("features", ["polynomial", "kernel", PolynomialFeatures(2)], ids=["poly", "kernel", "own"])
def test_features_let_the_gate_draw_a_circle(features):
    X, y, inside = ring()
    gate = SoftmaxGate(ridge=0.01, features=features)
    model = MoERegressor(2, gate=gate, random_state=0, n_init=4).fit(X, y)
    asked = model.gate_proba(X).argmax(axis=1)
    assert max((asked == inside).mean(), (asked != inside).mean()) > 0.97
    linear = MoERegressor(2, random_state=0, n_init=4).fit(X, y)
    assert model.score(X, y) > 0.9 > linear.score(X, y)


def test_the_gate_may_look_at_other_columns_than_the_experts():
    X, y, _ = switching(400)
    wide = np.column_stack([X, np.random.default_rng(1).normal(size=400)])
    model = MoERegressor(2, gate=SoftmaxGate(columns=[0]), random_state=0).fit(wide, y)
    assert model.gate_.coef.shape == (2, 1)
    assert model.score(wide, y) > 0.85


def test_constant_weights_are_the_same_everywhere():
    gate = ConstantFitted(log_weight=np.log([0.2, 0.8]))
    np.testing.assert_allclose(np.exp(gate.log_proba(np.ones((3, 1)))), [[0.2, 0.8]] * 3)


@pytest.mark.parametrize(
    ("gate", "message"),
    [
        (SoftmaxGate(ridge=-1.0), "expected ridge a finite number of at least 0"),
        (SoftmaxGate(features="cubic"), "expected features None, 'polynomial', 'kernel' or a transformer, got 'cubic'"),
        (SoftmaxGate(max_steps=0), "expected max_steps"),
        (SoftmaxGate(columns=["a"]), "expected a column of X, got 'a'; X has no names"),
    ],
)
def test_bad_settings_are_refused(gate, message):
    X, y, _ = switching(20)
    with pytest.raises(UserError, match=message):
        MoERegressor(2, gate=gate).fit(X, y)
