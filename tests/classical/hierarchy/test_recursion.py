"""On-line steps against the textbook's recursion with covariances, against batch least squares and against Newton."""

import numpy as np
import pytest

from mixtura.classical.columns import Columns
from mixtura.classical.hierarchy.recursion import LineLearner, SoftmaxLearner
from mixtura.classical.softmax import fit_softmax, softmax_value


def _stream(n_samples=80, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n_samples, 2))
    y = X @ np.array([[1.0, 0.5], [-2.0, 0.0]]) + 3 + 0.1 * rng.normal(size=(n_samples, 2))
    return Columns(X=X, center=np.zeros(2), scale=np.ones(2)), y, rng.uniform(0.2, 1.0, size=n_samples)


def _rows(columns, first, last):
    return Columns(X=columns.X[first:last], center=columns.center, scale=columns.scale)


def test_single_rows_follow_the_recursion_of_recursive_least_squares():
    """R <- (R - R x x' R / (f / h + x' R x)) / f and b <- b + h R x (y - x b): Jordan and Jacobs, appendix B.

    Rows have weight h; forgetting acts on every row that has weight one.
    """
    columns, y, _ = _stream()
    forgetting, prior = 0.95, 1e-2
    R, b = np.eye(3) / prior, np.zeros((3, 2))
    learner = LineLearner.of(1, n_outputs=2, size=3, prior=prior)
    for n in range(len(y)):
        x = np.append(columns.X[n], 1.0)
        R = (R - np.outer(R @ x, R @ x) / (forgetting + x @ R @ x)) / forgetting
        b = b + np.outer(R @ x, y[n] - x @ b)
        learner = learner.step(
            _rows(columns, n, n + 1), y[n : n + 1], np.ones((1, 1)), log_forgetting=np.log(forgetting)
        )
    np.testing.assert_allclose(learner.weights[0], b.T, rtol=1e-6)
    np.testing.assert_allclose(np.linalg.inv(learner.curvature[0]), R, rtol=1e-6)


@pytest.mark.parametrize("block", [1, 7, 80])
def test_blocks_of_any_size_end_in_the_batch_solution(block):
    columns, y, weight = _stream()
    learner = LineLearner.of(1, n_outputs=2, size=3, prior=1e-2)
    for first in range(0, len(y), block):
        rows = slice(first, first + block)
        learner = learner.step(_rows(columns, first, first + block), y[rows], weight[rows, None], log_forgetting=0.0)
    A = np.c_[columns.X, np.ones(len(y))]
    b = np.linalg.solve(A.T @ (weight[:, None] * A) + 1e-2 * np.eye(3), A.T @ (weight[:, None] * y))
    residual = y - A @ b
    np.testing.assert_allclose(learner.weights[0], b.T, rtol=1e-7)
    scatter = residual.T @ (weight[:, None] * residual) + 1e-2 * b.T @ b
    np.testing.assert_allclose(learner.scatter[0], scatter, rtol=1e-5)
    assert learner.total[0] == pytest.approx(weight.sum())


def test_lines_that_are_not_asked_forget_nothing():
    columns, y, _ = _stream()
    learner = LineLearner.of(2, n_outputs=2, size=3)
    learner = learner.step(columns, y, np.ones((80, 2)), log_forgetting=0.0)
    after = learner.step(columns, y + 9, np.c_[np.zeros(80), np.ones(80)], log_forgetting=np.log(0.9))
    np.testing.assert_allclose(after.weights[0], learner.weights[0], rtol=1e-12)
    np.testing.assert_allclose(after.curvature[0], learner.curvature[0])
    np.testing.assert_allclose(after.weights[1, :, -1], 12.0, atol=0.1)


def test_measuring_moves_nothing():
    columns, y, _ = _stream()
    line = LineLearner.of(1, n_outputs=2, size=3).step(columns, y, np.ones((80, 1)), log_forgetting=0.0, move=False)
    assert not line.weights.any()
    np.testing.assert_allclose(line.scatter[0], y.T @ y)
    soft = SoftmaxLearner.of(2, size=3).step(columns, np.full((80, 2), 0.5), log_forgetting=0.0, move=False)
    assert not soft.weights.any()
    assert np.trace(soft.curvature) > 1.0


def test_softmax_steps_of_one_block_are_newton_steps_and_reach_the_maximum():
    columns, _, weight = _stream()
    truth = 1 / (1 + np.exp(-2 * columns.X[:, 0]))
    targets = weight[:, None] * np.c_[truth, 1 - truth]
    learner = SoftmaxLearner.of(2, size=3, prior=0.0)
    for _ in range(30):
        learner = SoftmaxLearner(weights=learner.weights, curvature=np.zeros((3, 3)))
        learner = learner.step(columns, targets, log_forgetting=0.0)
    assert np.abs(softmax_value(columns, targets, learner.weights)[1]).max() < 1e-8
    best = fit_softmax(columns, targets)
    odds = np.append(best.coef[0] - best.coef[1], best.intercept[0] - best.intercept[1])
    np.testing.assert_allclose(learner.weights[0] - learner.weights[1], odds, atol=1e-4)


def test_one_class_stays():
    columns, _, _ = _stream()
    learner = SoftmaxLearner.of(1, size=3)
    assert learner.step(columns, np.ones((80, 1)), log_forgetting=0.0) is learner
