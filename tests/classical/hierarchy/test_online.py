"""On-line learning of whole trees: it learns, it goes on from EM, it follows a drift, it refuses what has no step."""

import numpy as np
import pytest

from mixtura.classical import HMEClassifier, HMERegressor, LinearExpert, PoissonExpert
from mixtura.classical.hierarchy.base import forgetting_at
from mixtura.errors import UserError
from tests.classical.hierarchy.samples import checkers, four_lines


@pytest.mark.parametrize("gate", ["softmax", "least_squares"])
def test_one_pass_learns_the_four_lines(gate):
    X, y = four_lines(6000)
    model = HMERegressor(2, gate=gate, batch_size=20, forgetting_rows=1000, random_state=0).partial_fit(X, y)
    X_test, y_test = four_lines(500, seed=1)
    assert model.score(X_test, y_test) > 0.8
    assert model.online_.rows == pytest.approx(6000)


def test_rows_in_one_call_or_in_many_are_the_same():
    X, y = four_lines(400)
    whole = HMERegressor(1, batch_size=40, random_state=0).partial_fit(X, y)
    parts = HMERegressor(1, batch_size=40, random_state=0)
    for first in range(0, 400, 80):
        parts.partial_fit(X[first : first + 80], y[first : first + 80])
    np.testing.assert_allclose(parts.predict(X), whole.predict(X), rtol=1e-12)


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
@pytest.mark.parametrize("gate", ["softmax", "least_squares"])
def test_going_on_from_em_starts_where_em_ended(gate, covariance):
    X, y = four_lines(600)
    y = np.c_[y, -y + 0.1 * np.random.default_rng(1).normal(size=600)]
    expert = LinearExpert(covariance=covariance, shared_variance=covariance == "full")
    model = HMERegressor(2, gate=gate, expert=expert, random_state=0, n_init=2).fit(X, y)
    before, noise = model.predict(X), model.experts_.covariance
    np.testing.assert_allclose(model.online_.gate.log_proba(X), model.gate_.log_proba(X), atol=1e-12)
    np.testing.assert_allclose(model.online_.fitted.covariance, noise, rtol=0.05)
    model.set_params(forgetting=1.0).partial_fit(X[:10], y[:10])
    assert np.abs(model.predict(X) - before).mean() < 0.02


def test_forgetting_follows_a_drift_and_remembering_does_not():
    X, _ = four_lines(2000)
    errors = {}
    for forgetting in (0.98, 1.0):
        model = HMERegressor(0, forgetting=forgetting, forgetting_rows=None, batch_size=10)
        model.partial_fit(X, 2 * X[:, 0]).partial_fit(X, -2 * X[:, 0])
        errors[forgetting] = np.abs(model.predict(X) + 2 * X[:, 0]).mean()
    assert errors[0.98] < 1e-3
    assert errors[1.0] > 0.5


def test_classes_are_learnt_on_line():
    X, y = checkers(3000)
    model = HMEClassifier(2, batch_size=25, random_state=0).partial_fit(X, y, classes=["same", "other"])
    for _ in range(4):
        model.partial_fit(X, y)
    assert model.score(X, y) > 0.9
    fitted = HMEClassifier(2, n_init=2, random_state=0, max_iter=100, tol=1e-3).fit(X[:500], y[:500])
    assert fitted.partial_fit(X[500:], y[500:]).score(X, y) > 0.9


def test_a_ridge_holds_on_line():
    X, _ = four_lines(50)
    strong = HMERegressor(0, expert=LinearExpert(alpha=1e6)).partial_fit(X, X[:, 0])
    assert np.abs(strong.experts_.coef).max() < 1e-3


def test_what_has_no_recursion_is_refused():
    X, y = four_lines(50)
    with pytest.raises(UserError, match="for partial_fit"):
        HMERegressor(1, expert=PoissonExpert()).partial_fit(X, np.round(y))
    with pytest.raises(UserError, match="for partial_fit"):
        HMERegressor(1, gate="kernel", expert="student_t").partial_fit(X, y)
    with pytest.raises(UserError, match="expected classes in the first call"):
        HMEClassifier(1).partial_fit(X, y > 0)
    model = HMEClassifier(1).partial_fit(X, y > 0.2, classes=[False, True])
    with pytest.raises(UserError, match="as before"):
        model.partial_fit(X, y > 0.2, classes=[0, 1, 2])
    with pytest.raises(UserError, match="class_weight"):
        HMEClassifier(1, class_weight="balanced").partial_fit(X, y > 0, classes=[False, True])


@pytest.mark.parametrize(
    ("name", "value"), [("batch_size", 0), ("forgetting", 0.0), ("forgetting", 1.5), ("forgetting_rows", -1.0)]
)
def test_settings_of_on_line_learning_are_checked(name, value):
    X, y = four_lines(50)
    for learn in ("fit", "partial_fit"):
        with pytest.raises(UserError, match=name):
            getattr(HMERegressor(1, **{name: value}), learn)(X, y)


def test_the_schedule_rises_to_one():
    values = np.exp([forgetting_at(rows, start=0.9, halving=10.0) for rows in (0, 10, 20, 1000)])
    np.testing.assert_allclose(values, [0.9, 0.95, 0.975, 1.0])
    assert forgetting_at(1e9, start=0.9, halving=None) == pytest.approx(np.log(0.9))
    assert forgetting_at(0, start=1.0, halving=None) == 0.0


def test_other_outputs_than_before_are_refused():
    X, y = four_lines(60)
    model = HMERegressor(1, random_state=0).partial_fit(X, y)
    with pytest.raises(UserError, match=r"expected 1 column\(s\) and 1 output\(s\) to go on .* 2 output"):
        model.partial_fit(X, np.column_stack([y, y]))
