"""Weighted (ridge) least squares for many sets of weights at once: the M-step of every linear expert."""

from dataclasses import dataclass

import numpy as np

from mixtura.classical.columns import Array, Columns, blocks

# Directions whose share of the (unit-diagonal) Gram matrix is below this are not in the data but in its rounding.
RANK_TOLERANCE = 1e-12


def weighted_gram(columns: Columns, weights: Array, y: Array | None = None) -> Array:
    """Give `A.T @ diag(w) @ A` for every column w of `weights`, in one pass and one product a block.

    Args:
        columns: the design, size p.
        weights: (n_samples, n_experts), non-negative; fastest when stored expert by expert (Fortran order).
        y: (n_samples, n_outputs), appended to the columns of A as they are.

    Returns:
        (n_experts, p + n_outputs, p + n_outputs). Columns are the standardised ones of `columns`.

    Example:
        >>> columns = Columns.of(np.array([[0.0], [2.0]]))
        >>> weighted_gram(columns, np.array([[1.0, 1.0], [1.0, 3.0]]))[1]
        array([[4., 2.],
               [2., 4.]])
    """
    n_samples, n_experts = weights.shape
    size = columns.size + (0 if y is None else y.shape[1])
    gram = np.zeros((n_experts * size, size))
    for rows in blocks(n_samples, size * n_experts):
        block = columns.block(rows)
        if y is not None:
            block = np.vstack([block, y[rows].T])
        weighted = weights[rows].T[:, None, :] * block
        gram += weighted.reshape(n_experts * size, -1) @ block.T
    return gram.reshape(n_experts, size, size)


def solve_psd(matrix: Array, right: Array) -> Array:
    """Solve `matrix @ x = right` for a positive semi-definite matrix; the smallest x where there are many.

    The diagonal is scaled to one first, so that only dependence between columns counts, and not their units.

    Shapes: matrix (p, p), right (p, m) -> (p, m).

    Example:
        >>> solve_psd(np.array([[2.0, 2.0], [2.0, 2.0]]), np.array([[4.0], [4.0]])).ravel()
        array([1., 1.])
    """
    diagonal = np.sqrt(np.maximum(np.diag(matrix), 0.0))
    unit = np.where(diagonal > RANK_TOLERANCE * diagonal.max(initial=0.0), diagonal, 1.0)
    values, vectors = np.linalg.eigh(matrix / np.outer(unit, unit))
    kept = values > RANK_TOLERANCE * max(float(values[-1]), 0.0)
    basis = vectors[:, kept]
    solved: Array = (basis / values[kept]) @ (basis.T @ (right / unit[:, None]))
    return solved / unit[:, None]


@dataclass(frozen=True, kw_only=True)
class LeastSquares:
    """Fitted lines and what they leave over.

    Shapes: coef (n_experts, n_outputs, n_features), intercept (n_experts, n_outputs), total (n_experts,), the sum of
    weights; scatter (n_experts, n_outputs, n_outputs), the weighted sum of products of residuals plus the ridge's
    penalty, so that scatter / total is the variance that maximises the penalised Gaussian likelihood.

    Example:
        >>> fit = least_squares(Columns.of(np.array([[0.0], [1.0]])), np.array([[1.0], [3.0]]), np.ones((2, 1)))
        >>> fit.coef.ravel().round(6), fit.intercept.ravel().round(6)
        (array([2.]), array([1.]))
    """

    coef: Array
    intercept: Array
    scatter: Array
    total: Array


def least_squares(columns: Columns, y: Array, weights: Array, *, ridge: float = 0.0) -> LeastSquares:
    """Minimise `sum_n w_nk |y_n - x_n b_k|^2 + ridge |b_k|^2` for every expert k; the intercept is free.

    Columns that depend on others, too few rows and weights of zero are no error: the smallest solution is given.

    Args:
        columns: the design, of n_features columns.
        y: (n_samples, n_outputs).
        weights: (n_samples, n_experts), non-negative.
        ridge: the penalty, in units of the weights times the squared units of y and X, as in scikit-learn's Ridge.

    Example:
        >>> X, y = np.arange(4.0)[:, None], np.array([[0.0], [1.0], [9.0], [9.0]])
        >>> halves = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
        >>> least_squares(Columns.of(X), y, halves).coef.ravel().round(6)
        array([1., 0.])
    """
    origin = np.average(y, axis=0, weights=weights.sum(axis=1) if weights.any() else None)
    if not columns.intercept:
        origin = np.zeros_like(origin)
    size = columns.size
    gram = weighted_gram(columns, weights, y - origin)
    penalty = np.diag(columns.penalty(ridge))
    solved = np.stack([solve_psd(g[:size, :size] + penalty, g[:size, size:]) for g in gram])
    inner, cross, square = gram[:, :size, :size] + penalty, gram[:, :size, size:], gram[:, size:, size:]
    transposed = solved.swapaxes(1, 2)
    # The residual's scatter, complete in the solution, so that a rounded or rank-deficient one is measured truthfully.
    mixed = transposed @ cross
    scatter = square - mixed - mixed.swapaxes(1, 2) + transposed @ inner @ solved
    restored = [columns.restore(weight) for weight in transposed]
    return LeastSquares(
        coef=np.stack([coef for coef, _ in restored]),
        intercept=np.stack([constant for _, constant in restored]) + origin,
        scatter=scatter,
        total=weights.sum(axis=0),
    )
