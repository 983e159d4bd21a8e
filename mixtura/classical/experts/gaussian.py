"""Linear, ridge and polynomial experts with Gaussian noise: the M-step is weighted least squares."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import linalg, stats

from mixtura.classical.checks import check_at_least, check_choice, check_whole
from mixtura.classical.columns import Array, Columns, linear_map
from mixtura.classical.data import ColumnChoice, Data
from mixtura.classical.experts.base import ExpertFamily, ExpertTrainer, FittedExperts
from mixtura.classical.experts.features import Features, floor_warnings, variance_floor
from mixtura.classical.least_squares import least_squares

LOG_2PI = float(np.log(2 * np.pi))
Covariance = Literal["diagonal", "full"]


@dataclass(frozen=True, kw_only=True)
class LinearExperts(FittedExperts):
    """Fitted lines with Gaussian noise.

    Shapes: coef (n_experts, n_outputs, n_terms), intercept (n_experts, n_outputs), covariance (n_experts, n_outputs,
    n_outputs), diagonal unless asked for in full; floored (n_experts,) marks a noise that stands at the floor.

    Example:
        >>> experts = LinearExperts(features=Features(columns=None), coef=np.array([[[2.0]]]),
        ...     intercept=np.ones((1, 1)), covariance=np.ones((1, 1, 1)), floored=np.array([False]),
        ...     n_parameters=3, penalty=0.0)
        >>> experts.mean(np.array([[1.0], [2.0]])).ravel()
        array([3., 5.])
    """

    features: Features
    coef: Array
    intercept: Array
    covariance: Array
    floored: NDArray[np.bool_]
    n_parameters: int
    penalty: float
    diagonal: bool = True

    @property
    def n_experts(self) -> int:  # type: ignore[override]  # a value computed from another field, read-only
        """The number of experts."""
        return len(self.coef)

    def mean(self, X: Array) -> Array:
        """Give each expert's line, shape (n_samples, n_experts, n_outputs)."""
        return line_values(self.features(X), self.coef, self.intercept)

    def log_density(self, X: Array, y: NDArray[Any]) -> Array:
        """Give the Gaussian log-density of y (n_samples, n_outputs) under each expert, shape (n_samples, n_experts)."""
        return self.log_density_of(self.features(X), y)

    def log_density_of(self, terms: Array, y: NDArray[Any]) -> Array:
        """Give the log-density from the features, so that training need not make them again."""
        values = line_values(terms, self.coef, self.intercept)
        if self.diagonal:
            return _diagonal_log_density(y, values, np.diagonal(self.covariance, axis1=1, axis2=2))
        columns = []
        for k, covariance in enumerate(self.covariance):
            factor = linalg.cholesky(covariance, lower=True)
            white = linalg.solve_triangular(factor, (y - values[:, k]).T, lower=True)
            constant = np.log(np.diag(factor)).sum() + 0.5 * len(covariance) * LOG_2PI
            columns.append(-0.5 * (white**2).sum(axis=0) - constant)
        return np.array(columns).T

    def distributions(self, X: Array) -> list[Any]:
        """Give each expert's normal distribution, of each output alone."""
        spread = np.sqrt(np.diagonal(self.covariance, axis1=1, axis2=2))
        mean = self.mean(X)
        return [stats.norm(mean[:, k], np.broadcast_to(spread[k], mean[:, k].shape)) for k in range(self.n_experts)]

    def warnings(self) -> list[str]:
        """Say which experts fit their share so well that the noise had to be floored."""
        return floor_warnings(self.floored)


def line_values(terms: Array, coef: Array, intercept: Array) -> Array:
    """Give the value of every line (n_samples, n_experts, n_outputs), stored line by line.

    Example:
        >>> line_values(np.array([[2.0]]), np.array([[[1.0]], [[3.0]]]), np.zeros((2, 1)))[0, :, 0]
        array([2., 6.])
    """
    n_experts, n_outputs, n_terms = coef.shape
    flat = linear_map(terms, coef.reshape(n_experts * n_outputs, n_terms), intercept.ravel())
    return flat.T.reshape(n_experts, n_outputs, len(terms)).transpose(2, 0, 1)


def _diagonal_log_density(y: Array, values: Array, variance: Array) -> Array:
    density = np.zeros((values.shape[1], len(y)))
    for output in range(y.shape[1]):
        residual = y[:, output] - values[:, :, output].T
        residual *= residual
        residual /= -2 * variance[:, output, None]
        density += residual
    density -= 0.5 * (np.log(variance) + LOG_2PI).sum(axis=1, keepdims=True)
    return density.T


class LinearExpert(ExpertFamily):
    """Linear, ridge or polynomial experts with Gaussian noise, for one or several outputs.

    Args:
        alpha: ridge penalty, as in scikit-learn's Ridge (sum of squares + alpha * |coef|^2); 0 is least squares.
        degree: 2 and more add all products of up to that many columns.
        columns: the columns to look at, by number or name; None for all.
        shared_variance: one noise for all experts instead of one each.
        covariance: "diagonal", or "full" for correlated noise of several outputs.
        variance_floor: smallest noise variance, as a share of the variance of y; reaching it is a warning.

    Source: Jordan and Jacobs (1994), section 3.

    Example:
        >>> from mixtura.classical import MoERegressor
        >>> X = np.linspace(-1, 1, 100)[:, None]
        >>> y = np.abs(X[:, 0]) + 0.01 * np.sin(50 * X[:, 0])
        >>> model = MoERegressor(2, expert=LinearExpert(alpha=1e-6), random_state=0).fit(X, y)
        >>> sorted(model.experts_.coef[:, 0, 0].round(2))
        [np.float64(-1.0), np.float64(1.0)]
    """

    def __init__(
        self,
        alpha: float = 0.0,
        *,
        degree: int = 1,
        columns: ColumnChoice = None,
        shared_variance: bool = False,
        covariance: Covariance = "diagonal",
        variance_floor: float = 1e-6,
    ) -> None:
        self.alpha = alpha
        self.degree = degree
        self.columns = columns
        self.shared_variance = shared_variance
        self.covariance = covariance
        self.variance_floor = variance_floor

    def bind(self, data: Data, n_experts: int, *, seed: int = 0) -> "LinearTrainer":  # noqa: ARG002  nothing is random
        """Check the hyper-parameters and make the features once."""
        check_at_least("alpha", self.alpha, 0)
        check_whole("degree", self.degree, 1)
        check_at_least("variance_floor", self.variance_floor, 0)
        check_choice("covariance", self.covariance, ("diagonal", "full"))
        return LinearTrainer(self, data, n_experts)


class LinearTrainer(ExpertTrainer):
    """Linear experts bound to data: the features and their scales are made once."""

    def __init__(self, family: LinearExpert, data: Data, n_experts: int) -> None:
        self.family = family
        self.frozen = np.zeros(n_experts, bool)
        self.features = Features(columns=data.column_numbers(family.columns), degree=family.degree)
        self.y = data.y
        self.columns = Columns.of(self.features(data.X), sample_weight=data.sample_weight)
        self.floor = variance_floor(data.y, data.sample_weight, family.variance_floor)

    def fit(self, weights: Array, previous: FittedExperts | None) -> LinearExperts:  # noqa: ARG002  closed form
        """Solve the weighted least squares of every expert and set its noise to the mean square that is left."""
        fit = least_squares(self.columns, self.y, weights, ridge=self.family.alpha)
        scatter, total = fit.scatter, fit.total
        if self.family.shared_variance:
            scatter = np.broadcast_to(scatter.sum(axis=0), scatter.shape)
            total = np.broadcast_to(total.sum(), total.shape)
        # An expert without any share keeps the noise of all rows together.
        empty = total <= 0
        scatter = np.where(empty[:, None, None], fit.scatter.sum(axis=0), scatter)
        covariance = scatter / np.where(empty, max(fit.total.sum(), 1.0), total)[:, None, None]
        diagonal = self.family.covariance == "diagonal"
        floored = [floor_covariance(matrix, self.floor, diagonal=diagonal) for matrix in covariance]
        covariance = np.stack([matrix for matrix, _ in floored])
        n_experts, n_outputs, n_terms = fit.coef.shape
        noise = n_outputs if diagonal else n_outputs * (n_outputs + 1) // 2
        square = np.einsum("kif,kij,kjf->", fit.coef, np.linalg.inv(covariance), fit.coef)
        return LinearExperts(
            features=self.features,
            coef=fit.coef,
            intercept=fit.intercept,
            covariance=covariance,
            floored=np.array([low for _, low in floored]),
            n_parameters=n_experts * n_outputs * (n_terms + 1)
            + noise * (1 if self.family.shared_variance else n_experts),
            penalty=0.5 * self.family.alpha * float(square),
            diagonal=diagonal,
        )

    def log_density(self, experts: FittedExperts) -> Array:
        """Give the log-density of the training targets from the features made before."""
        assert isinstance(experts, LinearExperts)
        return experts.log_density_of(self.columns.X, self.y)


def floor_covariance(matrix: Array, floor: Array, *, diagonal: bool) -> tuple[Array, bool]:
    """Lift a covariance to the floor and say whether that changed it; in units of the floor no direction is below 1.

    Example:
        >>> floor_covariance(np.array([[1e-9]]), np.array([1e-6]), diagonal=True)
        (array([[1.e-06]]), True)
    """
    if diagonal:
        variance = np.diag(matrix)
        return np.diag(np.maximum(variance, floor)), bool((variance < floor).any())
    unit = np.outer(np.sqrt(floor), np.sqrt(floor))
    values, vectors = linalg.eigh(matrix / unit)
    lifted = (vectors * np.maximum(values, 1.0)) @ vectors.T * unit
    return 0.5 * (lifted + lifted.T), bool((values < 1.0).any())
