"""Softmax regression on soft labels by Newton's method: the M-step of a gate and of softmax experts.

The objective is `sum_n sum_k t_nk log softmax(x_n B)_k - ridge/2 |B|^2`, where the targets t are responsibilities times
sample weights and need not sum to one. It is concave, and no step lowers it. See Jordan and Jacobs, "Hierarchical
mixtures of experts and the EM algorithm" (1994), section 4 and appendix A (IRLS).
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import linalg

from mixtura.classical.columns import Array, Columns, blocks
from mixtura.classical.least_squares import solve_psd, weighted_gram

# More rows than this give the Hessian from a fixed sample of them: its cost stays below that of the exact gradient's
# few passes, and the line search on the exact objective keeps every step an ascent.
HESSIAN_ROWS = 20_000
ARMIJO = 1e-4
SHORTEST_STEP = 1e-10


def log_softmax(scores: Array) -> Array:
    """Give `log(exp(scores) / exp(scores).sum(axis=1))` without overflow, in the memory order of `scores`.

    Shapes: (n_samples, n_classes) -> (n_samples, n_classes). A score of -inf gives -inf.

    Example:
        >>> np.exp(log_softmax(np.array([[0.0, 0.0], [1000.0, 0.0]])))
        array([[0.5, 0.5],
               [1. , 0. ]])
    """
    out = np.empty_like(scores)
    for rows in blocks(len(scores), 4 * scores.shape[1]):
        shifted = scores[rows] - scores[rows].max(axis=1, keepdims=True)
        out[rows] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return out


@lru_cache(maxsize=64)
def contrasts(n_classes: int) -> Array:
    """Give orthonormal columns (n_classes, n_classes - 1) that span what softmax can tell apart: scores of sum zero.

    Example:
        >>> contrasts(2).round(4)
        array([[ 0.7071],
               [-0.7071]])
    """
    return np.asarray(linalg.helmert(n_classes).T)


def softmax_value(columns: Columns, targets: Array, weights: Array, *, ridge: float = 0.0) -> tuple[float, Array]:
    """Give the objective at `weights` and its gradient, in one pass.

    Shapes: targets (n_samples, n_classes), weights and gradient (n_classes, columns.size). The weights are those of the
    standardised blocks; `ridge` penalises all of them but the intercept.

    Example:
        >>> columns = Columns.of(np.array([[-1.0], [1.0]]))
        >>> value, gradient = softmax_value(columns, np.eye(2), np.zeros((2, 2)))
        >>> round(value, 4), gradient[:, 0]
        (-1.3863, array([-1.,  1.]))
    """
    free = _penalised(columns)
    value = -0.5 * ridge * float((weights**2 * free).sum())
    gradient = -ridge * weights * free
    for rows in blocks(len(targets), columns.size + 4 * targets.shape[1]):
        block, target = columns.block(rows), targets[rows].T
        scores = weights @ block
        scores -= scores.max(axis=0)
        mass = target.sum(axis=0)
        share = np.exp(scores)
        norm = share.sum(axis=0)
        value += float(np.vdot(target, scores) - mass @ np.log(norm))
        share *= mass / norm
        gradient += (target - share) @ block.T
    return value, gradient


def softmax_hessian(columns: Columns, mass: Array, weights: Array, *, ridge: float = 0.0) -> Array:
    """Give minus the Hessian of the objective in the coordinates of `contrasts`: a square of (n_classes - 1) p rows.

    Shapes: mass (n_samples,), the row sums of the targets; weights (n_classes, p), p = columns.size.

    Example:
        >>> columns = Columns.of(np.array([[-1.0], [1.0]]))
        >>> softmax_hessian(columns, np.ones(2), np.zeros((2, 2)))
        array([[1., 0.],
               [0., 1.]])
    """
    n_classes, size = weights.shape
    basis = contrasts(n_classes)
    first, second = np.triu_indices(n_classes - 1)
    products = basis[:, first] * basis[:, second]
    pairs = np.zeros((len(first), size, size))
    for rows in blocks(len(mass), n_classes * size + len(first) * size):
        probability = np.exp(log_softmax((weights @ columns.block(rows)).T))
        mean = probability @ basis
        curvature = mass[rows, None] * (probability @ products - mean[:, first] * mean[:, second])
        part = Columns(X=columns.X[rows], center=columns.center, scale=columns.scale, intercept=columns.intercept)
        pairs += weighted_gram(part, curvature)
    hessian = np.empty((n_classes - 1, size, n_classes - 1, size))
    hessian[first, :, second, :] = pairs
    hessian[second, :, first, :] = pairs
    flat = hessian.reshape((n_classes - 1) * size, -1)
    return flat + np.diag(np.tile(ridge * _penalised(columns), n_classes - 1))


def _penalised(columns: Columns) -> Array:
    return np.append(np.ones(columns.X.shape[1]), [0.0] * columns.intercept)


@dataclass(frozen=True, kw_only=True)
class SoftmaxFit:
    """Coefficients of a softmax regression; scores are `X @ coef.T + intercept`, log-probabilities their log-softmax.

    Shapes: coef (n_classes, n_features), intercept (n_classes,); value is the penalised objective that was reached,
    penalty the part of it that the ridge took (a positive number), n_steps the Newton steps.

    Example:
        >>> fit = fit_softmax(Columns.of(np.array([[-1.0], [1.0]])), np.array([[0.75, 0.25], [0.25, 0.75]]))
        >>> (fit.coef[1] - fit.coef[0]).round(4)
        array([1.0986])
    """

    coef: Array
    intercept: Array
    value: float
    penalty: float
    n_steps: int
    converged: bool


def fit_softmax(
    columns: Columns,
    targets: Array,
    *,
    ridge: float = 0.0,
    start: SoftmaxFit | None = None,
    max_steps: int = 100,
    tol: float = 1e-8,
) -> SoftmaxFit:
    """Maximise the softmax objective by Newton's method with a line search that never lowers it.

    Args:
        columns: the design.
        targets: (n_samples, n_classes), non-negative; responsibilities times sample weights.
        ridge: penalty on the coefficients of the standardised columns; the intercept is free.
        start: where to begin (coefficients in the units of X), zero otherwise.
        max_steps: Newton steps at most; one is enough inside an EM iteration.
        tol: stop when a step promises less than `tol` times the summed targets.

    Example:
        >>> fit = fit_softmax(Columns.of(np.zeros((4, 1))), np.eye(2)[[0, 0, 0, 1]])
        >>> np.exp(log_softmax(fit.intercept[None]))[0].round(4)
        array([0.75, 0.25])
    """
    n_classes = targets.shape[1]
    weights = np.zeros((n_classes, columns.size)) if start is None else _centred(columns, start)
    value, gradient = softmax_value(columns, targets, weights, ridge=ridge)
    total = float(targets.sum())
    steps, converged = 0, n_classes == 1
    while steps < max_steps and not converged:
        direction = _newton(columns, targets, weights, gradient=gradient, ridge=ridge)
        promise = float(np.vdot(direction, gradient))
        converged = promise <= tol * total
        if promise <= 1e-14 * total:  # nothing but rounding is left to gain
            break
        step = 1.0
        while step > SHORTEST_STEP:
            tried, slope = softmax_value(columns, targets, weights + step * direction, ridge=ridge)
            if tried >= value + ARMIJO * step * promise:
                weights, value, gradient = weights + step * direction, tried, slope
                break
            step *= 0.5
        else:
            converged = True  # no ascent is left that double precision could see
        steps += 1
    coef, intercept = columns.restore(weights)
    penalty = 0.5 * ridge * float((weights**2 * _penalised(columns)).sum())
    return SoftmaxFit(
        coef=coef, intercept=intercept, value=value, penalty=penalty, n_steps=steps, converged=bool(converged)
    )


def _centred(columns: Columns, start: SoftmaxFit) -> Array:
    weights = columns.standardise(start.coef, start.intercept)
    centred: Array = weights - weights.mean(axis=0)
    return centred


def _newton(columns: Columns, targets: Array, weights: Array, *, gradient: Array, ridge: float) -> Array:
    """Give the Newton direction (n_classes, p); where curvature vanished, the diagonal is lifted, not the step lost."""
    mass = targets.sum(axis=1)
    if len(mass) > HESSIAN_ROWS:
        rows = np.sort(np.random.default_rng(0).choice(len(mass), HESSIAN_ROWS, replace=False))
        total, mass, columns = mass.sum(), mass[rows], columns.take(rows)
        mass = mass * (total / max(mass.sum(), np.finfo(float).tiny))
    basis = contrasts(len(weights))
    hessian = softmax_hessian(columns, mass, weights, ridge=ridge)
    # Saturated classes leave curvatures of 1e-20 next to ones of 1: a step along them would be as long as it is blind.
    hessian += 1e-10 * max(np.trace(hessian) / len(hessian), np.finfo(float).tiny) * np.eye(len(hessian))
    right = (basis.T @ gradient).reshape(-1, 1)
    try:
        solved = np.linalg.solve(hessian, right)
    except np.linalg.LinAlgError:
        solved = solve_psd(hessian, right)
    direction: Array = basis @ solved.reshape(len(weights) - 1, -1)
    return direction
