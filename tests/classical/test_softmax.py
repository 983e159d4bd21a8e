import numpy as np
import pytest
from scipy.optimize import approx_fprime
from scipy.special import log_softmax as scipy_log_softmax
from sklearn.linear_model import LogisticRegression

from mixtura.classical import softmax
from mixtura.classical.columns import Columns
from mixtura.classical.softmax import contrasts, fit_softmax, log_softmax, softmax_hessian, softmax_value


def problem(n_samples=200, n_classes=3, n_features=2):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n_samples, n_features)) * 3.0 + 1.0
    return Columns.of(X), rng.random((n_samples, n_classes)) ** 2


@pytest.mark.parametrize("order", ["C", "F"])
def test_log_softmax_equals_scipy_and_survives_extremes(order):
    scores = np.array([[0.0, 1.0, 2.0], [1e300, -1e300, 0.0], [-np.inf, 3.0, 3.0]], order=order)
    ours = log_softmax(scores)
    np.testing.assert_allclose(ours, scipy_log_softmax(scores, axis=1))
    assert ours.flags.f_contiguous == (order == "F")


@pytest.mark.parametrize("n_classes", [1, 2, 5])
def test_contrasts_are_orthonormal_and_sum_to_zero(n_classes):
    basis = contrasts(n_classes)
    np.testing.assert_allclose(basis.T @ basis, np.eye(n_classes - 1), atol=1e-15)
    np.testing.assert_allclose(basis.sum(axis=0), 0.0, atol=1e-15)


@pytest.mark.parametrize("ridge", [0.0, 0.7])
def test_the_gradient_equals_finite_differences(ridge):
    columns, targets = problem()
    weights = np.random.default_rng(1).normal(size=(3, 3))
    _, gradient = softmax_value(columns, targets, weights, ridge=ridge)

    def value(flat):
        return softmax_value(columns, targets, flat.reshape(3, 3), ridge=ridge)[0]

    np.testing.assert_allclose(gradient.ravel(), approx_fprime(weights.ravel(), value, 1e-6), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("block_numbers", [1 << 18, 1])
def test_the_hessian_equals_finite_differences_of_the_gradient(monkeypatch, block_numbers):
    monkeypatch.setattr("mixtura.classical.columns.BLOCK_NUMBERS", block_numbers)
    columns, targets = problem()
    weights = np.random.default_rng(1).normal(size=(3, 3))
    basis = contrasts(3)
    hessian = softmax_hessian(columns, targets.sum(axis=1), weights, ridge=0.3)

    def slope(flat):
        return (basis.T @ softmax_value(columns, targets, basis @ flat.reshape(2, 3), ridge=0.3)[1]).ravel()

    at = (basis.T @ weights).ravel()
    weights = basis @ basis.T @ weights
    numeric = np.array([(slope(at + e) - slope(at - e)) / 2e-5 for e in 1e-5 * np.eye(6)])
    np.testing.assert_allclose(hessian, -numeric, rtol=1e-5, atol=1e-5)


def test_hard_labels_give_the_logistic_regression_of_scikit_learn():
    columns, _ = problem()
    rng = np.random.default_rng(2)
    labels = np.argmax(columns.X @ rng.normal(size=(2, 3)) + rng.gumbel(size=(200, 3)), axis=1)
    fit = fit_softmax(columns, np.eye(3)[labels], tol=1e-12)
    theirs = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(columns.X, labels)
    np.testing.assert_allclose(fit.coef - fit.coef[0], theirs.coef_ - theirs.coef_[0], atol=1e-4)
    assert fit.converged
    assert fit.n_steps < 15


def test_no_step_lowers_the_objective_and_a_warm_start_continues():
    columns, targets = problem()
    values, fit = [], None
    for _ in range(8):
        fit = fit_softmax(columns, targets, ridge=0.1, start=fit, max_steps=1, tol=0.0)
        values.append(fit.value)
    assert all(np.diff(values) >= -1e-12 * abs(values[0]))
    best = fit_softmax(columns, targets, ridge=0.1, tol=1e-14)
    assert values[-1] == pytest.approx(best.value, rel=1e-12)
    assert best.penalty == pytest.approx(0.05 * ((best.coef * columns.scale) ** 2).sum())


def test_a_sampled_hessian_reaches_the_same_maximum(monkeypatch):
    columns, targets = problem(n_samples=2000)
    exact = fit_softmax(columns, targets, tol=1e-12)
    monkeypatch.setattr(softmax, "HESSIAN_ROWS", 300)
    sampled = fit_softmax(columns, targets, tol=1e-12)
    np.testing.assert_allclose(sampled.coef, exact.coef, atol=1e-5)


def test_rows_without_weight_do_not_count():
    columns, targets = problem()
    targets[::2] = 0.0
    part = Columns(X=columns.X[1::2], center=columns.center, scale=columns.scale)
    fit, half = fit_softmax(columns, targets), fit_softmax(part, targets[1::2])
    np.testing.assert_allclose(fit.coef, half.coef, atol=1e-12)


def test_separable_classes_end_with_finite_coefficients():
    X = np.array([[-2.0], [-1.0], [1.0], [2.0]])
    fit = fit_softmax(Columns.of(X), np.eye(2)[[0, 0, 1, 1]], max_steps=500)
    assert np.isfinite(fit.coef).all()
    assert np.array_equal(np.argmax(X @ fit.coef.T + fit.intercept, axis=1), [0, 0, 1, 1])
    assert fit.value > -1e-6


def test_one_class_and_no_weight_at_all_are_no_error():
    columns, targets = problem()
    assert np.array_equal(fit_softmax(columns, targets[:, :1]).coef, np.zeros((1, 2)))
    assert np.array_equal(fit_softmax(columns, 0 * targets).coef, np.zeros((3, 2)))
