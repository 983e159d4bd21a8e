import numpy as np
import pytest
from sklearn.linear_model import Ridge

from mixtura.classical.columns import Columns, blocks
from mixtura.classical.least_squares import least_squares, solve_psd, weighted_gram


def problem(n_samples=300, n_experts=3, n_outputs=2):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n_samples, 4)) * [1.0, 10.0, 0.1, 1.0] + 3.0
    return X, rng.normal(size=(n_samples, n_outputs)), rng.random((n_samples, n_experts))


def test_weighted_gram_equals_the_sum_over_rows(monkeypatch):
    monkeypatch.setattr("mixtura.classical.columns.BLOCK_NUMBERS", 64 * 18)
    X, y, weights = problem()
    columns = Columns.of(X)
    assert len(list(blocks(300, 18))) > 2
    rows = np.column_stack([columns.block(slice(0, 300)).T, y])
    loop = [sum(w * np.outer(a, a) for w, a in zip(weights[:, k], rows, strict=True)) for k in range(3)]
    np.testing.assert_allclose(weighted_gram(columns, weights, y), loop)


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("ridge", [0.0, 2.5])
def test_every_expert_is_the_weighted_ridge_of_scikit_learn(intercept, ridge):
    X, y, weights = problem()
    fit = least_squares(Columns.of(X, intercept=intercept), y, weights, ridge=ridge)
    for k in range(3):
        w = weights[:, k]
        theirs = Ridge(alpha=ridge, fit_intercept=intercept, solver="cholesky").fit(X, y, sample_weight=w)
        np.testing.assert_allclose(fit.coef[k], theirs.coef_, rtol=1e-8)
        np.testing.assert_allclose(fit.intercept[k], theirs.intercept_, rtol=1e-8, atol=1e-12)
        residual = y - theirs.predict(X)
        scatter = (w[:, None] * residual).T @ residual + ridge * theirs.coef_ @ theirs.coef_.T
        np.testing.assert_allclose(fit.scatter[k], scatter)
    np.testing.assert_allclose(fit.total, weights.sum(axis=0))


def test_large_offsets_cost_no_digits():
    rng = np.random.default_rng(0)
    X = 1.7e9 + rng.normal(size=(200, 1)) * 1e3
    y = 1e8 + 2.0 * (X - 1.7e9) + 1e-3 * rng.normal(size=(200, 1))
    fit = least_squares(Columns.of(X), y, np.ones((200, 1)))
    assert abs(fit.coef.item() - 2.0) < 1e-6
    assert fit.scatter.item() / 200 == pytest.approx(1e-6, rel=0.2)


def test_dependent_and_constant_columns_get_the_smallest_solution():
    x = np.linspace(-1, 1, 20)[:, None]
    fit = least_squares(Columns.of(np.hstack([x, x, np.ones_like(x)])), 4 * x, np.ones((20, 1)))
    np.testing.assert_allclose(fit.coef.ravel(), [2.0, 2.0, 0.0], atol=1e-12)
    np.testing.assert_allclose(fit.scatter, 0.0, atol=1e-12)


def test_fewer_rows_than_coefficients_and_no_weight_at_all_are_no_error():
    X, y, _ = problem(n_samples=3)
    fit = least_squares(Columns.of(X), y, np.column_stack([np.ones(3), np.zeros(3)]))
    np.testing.assert_allclose(X @ fit.coef[0].T + fit.intercept[0], y, rtol=1e-9)
    np.testing.assert_allclose(fit.coef[1], 0.0)
    assert np.isfinite(fit.intercept).all()
    assert np.array_equal(fit.total, [3.0, 0.0])


def test_solve_psd_is_the_pseudo_inverse_of_a_singular_matrix():
    a = np.random.default_rng(0).normal(size=(3, 5))
    right = a.T @ np.ones((3, 1))
    solved = solve_psd(a.T @ a, right)
    np.testing.assert_allclose(a.T @ a @ solved, right, atol=1e-10)
    assert np.array_equal(solve_psd(np.zeros((2, 2)), np.zeros((2, 1))), np.zeros((2, 1)))
