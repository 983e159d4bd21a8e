"""The recursions of on-line learning: one discounted Newton step for every block of rows.

A learner holds the discounted curvature A of what it has seen and steps by the block's gradient: `A <- f A + H`,
`b <- b + A^-1 g`. For weighted least squares that is recursive least squares in information form, exactly; for softmax
it is its analogue (on-line IRLS). What is forgotten is counted in rows that a learner was responsible for, so that one
that is not asked for a while keeps what it knows and its curvature does not wind up. Source: Jordan and Jacobs (1994),
section 5 and appendix B; Ljung and Soderstrom (1983).
"""

from dataclasses import dataclass, replace

import numpy as np

from mixtura.classical.columns import Array, Columns
from mixtura.classical.least_squares import weighted_gram
from mixtura.classical.softmax import contrasts, softmax_hessian, softmax_value

# The curvature before the first row, in rows per standardised coefficient: enough to make every step finite.
PRIOR = 1e-2


@dataclass(frozen=True, kw_only=True)
class LineLearner:
    """Lines under recursive weighted least squares, in the coordinates of `Columns`' blocks.

    Shapes: weights (n_lines, n_outputs, p), curvature (n_lines, p, p), scatter (n_lines, n_outputs, n_outputs), total
    (n_lines,): what is remembered of the weighted squares that are left, and of the weights.

    Example:
        >>> columns = Columns.of(np.array([[-1.0], [1.0]]))
        >>> line = LineLearner.of(1, n_outputs=1, size=2, prior=0.0)
        >>> line.step(columns, np.array([[1.0], [5.0]]), np.ones((2, 1)), log_forgetting=0.0).weights.round(6)
        array([[[2., 3.]]])
    """

    weights: Array
    curvature: Array
    scatter: Array
    total: Array

    @classmethod
    def of(cls, n_lines: int, *, n_outputs: int, size: int, prior: Array | float = PRIOR) -> "LineLearner":
        """Begin with lines of zero; `prior` is the diagonal of the curvature, of which a ridge is a part."""
        return cls(
            weights=np.zeros((n_lines, n_outputs, size)),
            curvature=np.tile(prior * np.eye(size), (n_lines, 1, 1)),
            scatter=np.zeros((n_lines, n_outputs, n_outputs)),
            total=np.zeros(n_lines),
        )

    def step(
        self, columns: Columns, y: Array, weights: Array, *, log_forgetting: float, move: bool = True
    ) -> "LineLearner":
        """Learn from a block: y (n_samples, n_outputs), weights (n_samples, n_lines).

        With `move=False` the lines stay, and only what is known of their certainty and noise is brought up to date.
        """
        size, mass = columns.size, weights.sum(axis=0)
        gram = weighted_gram(columns, weights, y)
        inner, cross, square = gram[:, :size, :size], gram[:, :size, size:], gram[:, size:, size:]
        kept = np.exp(log_forgetting * mass)[:, None, None]
        curvature = kept * self.curvature + inner
        fitted = inner @ self.weights.swapaxes(1, 2)
        gradient = cross - fitted
        # Residuals before the step; the step then takes away what it explains of them.
        mixed = self.weights @ cross
        scatter = kept * self.scatter + square - mixed - mixed.swapaxes(1, 2) + self.weights @ fitted
        weights_after = self.weights
        if move:
            change = np.linalg.solve(_lifted(curvature), gradient)
            scatter = scatter - gradient.swapaxes(1, 2) @ change
            weights_after = self.weights + change.swapaxes(1, 2)
        return LineLearner(
            weights=weights_after, curvature=curvature, scatter=scatter, total=kept[:, 0, 0] * self.total + mass
        )


@dataclass(frozen=True, kw_only=True)
class SoftmaxLearner:
    """A softmax regression under discounted Newton steps, in the coordinates of `Columns`' blocks.

    Shapes: weights (n_classes, p), curvature ((n_classes - 1) p, (n_classes - 1) p) in the coordinates of `contrasts`.

    Example:
        >>> columns = Columns.of(np.array([[-1.0], [1.0]]))
        >>> learner = SoftmaxLearner.of(2, size=2)
        >>> for _ in range(20):
        ...     learner = learner.step(columns, np.array([[0.75, 0.25], [0.25, 0.75]]), log_forgetting=0.0)
        >>> (learner.weights[1] - learner.weights[0]).round(1) + 0.0
        array([1.1, 0. ])
    """

    weights: Array
    curvature: Array

    @classmethod
    def of(cls, n_classes: int, *, size: int, prior: Array | float = PRIOR) -> "SoftmaxLearner":
        """Begin with even probabilities; `prior` is the diagonal of each class's curvature."""
        diagonal = np.tile(np.broadcast_to(prior, size), n_classes - 1)
        return cls(weights=np.zeros((n_classes, size)), curvature=np.diag(diagonal))

    def step(self, columns: Columns, targets: Array, *, log_forgetting: float, move: bool = True) -> "SoftmaxLearner":
        """Learn from a block of targets (n_samples, n_classes), each row weighted by its sum."""
        if len(self.weights) == 1:  # one class leaves nothing to learn
            return self
        mass = targets.sum(axis=1)
        kept = float(np.exp(log_forgetting * mass.sum()))
        curvature = kept * self.curvature + softmax_hessian(columns, mass, self.weights)
        if not move:
            return replace(self, curvature=curvature)
        basis = contrasts(len(self.weights))
        _, gradient = softmax_value(columns, targets, self.weights)
        change = np.linalg.solve(_lifted(curvature), (basis.T @ gradient).reshape(-1, 1))
        return SoftmaxLearner(weights=self.weights + basis @ change.reshape(basis.shape[1], -1), curvature=curvature)


def _lifted(curvature: Array) -> Array:
    """Lift what was never excited a little, so that every system has a solution."""
    size = curvature.shape[-1]
    trace = np.trace(curvature, axis1=-2, axis2=-1)[..., None, None]
    lifted: Array = curvature + (1e-10 * trace / size + np.finfo(float).tiny) * np.eye(size)
    return lifted
