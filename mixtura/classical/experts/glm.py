"""Poisson and Gamma experts with a log link and an offset: the M-step is Newton's method with a line search."""

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

from mixtura.classical.checks import check_at_least, check_whole
from mixtura.classical.columns import Array, Columns, blocks, linear_map
from mixtura.classical.data import ColumnChoice, Data
from mixtura.classical.experts.base import ExpertFamily, ExpertTrainer, FittedExperts
from mixtura.classical.experts.features import Features, floor_warnings
from mixtura.classical.least_squares import solve_psd, weighted_gram
from mixtura.errors import UserError

SHORTEST_STEP = 1e-10
LARGEST_LOG = 600.0  # exp of it, times a weight and a target, is still finite


@dataclass(frozen=True, kw_only=True)
class LogLinearExperts(FittedExperts):
    """Fitted experts whose mean is `exp(features(X) @ coef + intercept + offset)`.

    Shapes: coef (n_experts, n_terms), intercept and shape (n_experts,); the offset is a column of X or None. `shape` is
    the Gamma's (the inverse of its dispersion) and one for Poisson.
    """

    features: Features
    offset: int | None
    coef: Array
    intercept: Array
    shape: Array
    floored: NDArray[np.bool_]
    n_parameters: int
    penalty: float = 0.0

    @property
    def n_experts(self) -> int:  # type: ignore[override]  # a value computed from another field, read-only
        """The number of experts."""
        return len(self.coef)

    def log_mean(self, X: Array) -> Array:
        """Give the logarithm of each expert's mean, shape (n_samples, n_experts)."""
        log_mean = linear_map(self.features(X), self.coef, self.intercept)
        return log_mean if self.offset is None else log_mean + X[:, self.offset, None]

    def mean(self, X: Array) -> Array:
        """Give each expert's mean, shape (n_samples, n_experts, 1)."""
        return np.exp(np.clip(self.log_mean(X), -LARGEST_LOG, LARGEST_LOG))[:, :, None]

    def log_density(self, X: Array, y: NDArray[Any]) -> Array:
        """Give the log-density of y (n_samples, 1) under each expert, shape (n_samples, n_experts)."""
        return self.log_density_at(self.log_mean(X), y)

    @abstractmethod
    def log_density_at(self, log_mean: Array, y: NDArray[Any]) -> Array:
        """Give the log-density from the logarithm of the mean, both (n_samples, n_experts); y is (n_samples, 1)."""

    def warnings(self) -> list[str]:
        """Say which experts fit their share so well that the noise had to be floored."""
        return floor_warnings(self.floored)


@dataclass(frozen=True, kw_only=True)
class PoissonExperts(LogLinearExperts):
    """Fitted Poisson regressions."""

    def log_density_at(self, log_mean: Array, y: NDArray[Any]) -> Array:
        """Give the log-probability of the counts y."""
        with np.errstate(over="ignore"):
            return np.asarray(y * log_mean - np.exp(log_mean) - special.gammaln(y + 1))

    def distributions(self, X: Array) -> list[Any]:
        """Give each expert's Poisson distribution."""
        mean = self.mean(X)
        return [stats.poisson(mean[:, k]) for k in range(self.n_experts)]


@dataclass(frozen=True, kw_only=True)
class GammaExperts(LogLinearExperts):
    """Fitted Gamma regressions."""

    def log_density_at(self, log_mean: Array, y: NDArray[Any]) -> Array:
        """Give the log-density of the positive targets y."""
        constant = self.shape * np.log(self.shape) - special.gammaln(self.shape)
        with np.errstate(over="ignore"):
            return np.asarray(constant + (self.shape - 1) * np.log(y) - self.shape * (log_mean + y * np.exp(-log_mean)))

    def distributions(self, X: Array) -> list[Any]:
        """Give each expert's Gamma distribution."""
        mean = self.mean(X)
        return [stats.gamma(a=shape, scale=mean[:, k] / shape) for k, shape in enumerate(self.shape)]


class LogLinearExpert(ExpertFamily):
    """What Poisson and Gamma experts share: a log link, an offset and a ridge."""

    kind: ClassVar[type[LogLinearExperts]]
    least: ClassVar[str]

    def __init__(
        self,
        ridge: float = 0.0,
        *,
        degree: int = 1,
        columns: ColumnChoice = None,
        offset: int | str | None = None,
        variance_floor: float = 1e-6,
        max_steps: int = 5,
    ) -> None:
        self.ridge = ridge
        self.degree = degree
        self.columns = columns
        self.offset = offset
        self.variance_floor = variance_floor
        self.max_steps = max_steps

    def bind(self, data: Data, n_experts: int, *, seed: int = 0) -> "LogLinearTrainer":  # noqa: ARG002  nothing is random
        """Check that the targets belong to the family and make the features once."""
        check_at_least("ridge", self.ridge, 0)
        check_at_least("variance_floor", self.variance_floor, 0)
        check_whole("degree", self.degree, 1)
        check_whole("max_steps", self.max_steps, 1)
        if data.y.shape[1] != 1:
            raise UserError(f"expected one output for {self!r}, got {data.y.shape[1]}; fit one model for each")
        self.check_targets(data.y)
        return LogLinearTrainer(self, data, n_experts)

    @abstractmethod
    def check_targets(self, y: Array) -> None:
        """Raise UserError for targets that the family cannot have produced."""


class PoissonExpert(LogLinearExpert):
    """Poisson regressions for counts: `y ~ Poisson(exp(x b + offset))`.

    Args:
        ridge: penalty on the coefficients of X's columns, `ridge / 2 * |coef|^2`.
        degree: 2 and more add all products of up to that many columns.
        columns: the columns to look at, by number or name; None for all but the offset.
        offset: a column, by number or name, that enters the logarithm of the mean as it is: a log-exposure.
        variance_floor: has no effect on counts, whose variance is their mean.
        max_steps: Newton steps at most in one EM iteration.

    Example:
        >>> from mixtura.classical import MoERegressor
        >>> X = np.repeat([0.0, 1.0], 50)[:, None]
        >>> model = MoERegressor(1, expert=PoissonExpert()).fit(X, np.repeat([2, 6], 50))
        >>> model.experts_.coef[0, 0].round(4) == np.log(3).round(4)
        np.True_
    """

    kind = PoissonExperts

    def check_targets(self, y: Array) -> None:
        """Refuse anything but counts."""
        if (y < 0).any() or (y != np.floor(y)).any():
            worst = y[(y < 0) | (y != np.floor(y))][0]
            raise UserError(
                f"expected counts (whole numbers of at least 0) for Poisson experts, got {worst:g}; use linear"
            )


class GammaExpert(LogLinearExpert):
    """Gamma regressions for positive targets: mean `exp(x b + offset)`, variance mean^2 / shape, one shape an expert.

    Args:
        ridge: penalty on the coefficients of X's columns, `ridge / 2 * |coef|^2`.
        degree: 2 and more add all products of up to that many columns.
        columns: the columns to look at, by number or name; None for all but the offset.
        offset: a column, by number or name, that enters the logarithm of the mean as it is.
        variance_floor: smallest variance as a share of the squared mean; reaching it is a warning.
        max_steps: Newton steps at most in one EM iteration.

    Example:
        >>> from mixtura.classical import MoERegressor
        >>> X = np.repeat([0.0, 1.0], 50)[:, None]
        >>> y = np.exp(X[:, 0]) * np.tile([0.5, 1.5], 50)
        >>> MoERegressor(1, expert=GammaExpert()).fit(X, y).predict([[0.0], [1.0]]).round(3)
        array([1.   , 2.718])
    """

    kind = GammaExperts

    def check_targets(self, y: Array) -> None:
        """Refuse anything but positive numbers."""
        if (y <= 0).any():
            raise UserError(f"expected positive targets for Gamma experts, got {y.min():g}; shift them or use linear")


class LogLinearTrainer(ExpertTrainer):
    """Poisson or Gamma experts bound to data."""

    def __init__(self, family: LogLinearExpert, data: Data, n_experts: int) -> None:
        self.family, self.y = family, data.y
        self.frozen = np.zeros(n_experts, bool)
        self.offset = None
        if family.offset is not None:
            self.offset = int(np.asarray(data.column_numbers((family.offset,)))[0])
        self.log_exposure = np.zeros((data.n_samples, 1)) if self.offset is None else data.X[:, [self.offset]]
        chosen = data.column_numbers(family.columns)
        if chosen is None and self.offset is not None:
            chosen = np.delete(np.arange(data.X.shape[1]), self.offset)
        self.features = Features(columns=chosen, degree=family.degree)
        self.columns = Columns.of(self.features(data.X), sample_weight=data.sample_weight)
        self.penalty = self.columns.penalty(family.ridge)

    def fit(self, weights: Array, previous: FittedExperts | None) -> LogLinearExperts:
        """Take a few Newton steps, then set a Gamma's shape to its maximum; neither lowers the objective."""
        gamma = self.family.kind is GammaExperts
        # A warm start may come from experts of other features or of the other family.
        if isinstance(previous, self.family.kind) and previous.coef.shape[1] == self.columns.X.shape[1]:
            experts, coef = previous, self.columns.standardise(previous.coef, previous.intercept)
        else:
            experts, coef = self._blank(weights), np.zeros((weights.shape[1], self.columns.size))
            rate = (weights * self.y).sum(axis=0) / np.maximum(
                (weights * np.exp(self.log_exposure)).sum(axis=0), 1e-300
            )
            coef[:, -1] = np.log(np.maximum(rate, 1e-8))
        value = self._value(experts, coef, weights)
        for _ in range(self.family.max_steps):
            coef, gained, value = self._step(experts, coef, weights, value)
            if (gained <= 1e-10 * np.maximum(weights.sum(axis=0), 1.0)).all():
                break
        slopes, intercept = self.columns.restore(coef)
        penalty = 0.5 * float((coef**2 * self.penalty).sum())
        experts = replace(experts, coef=slopes, intercept=intercept, penalty=penalty)
        if gamma:
            ratio = self.y * np.exp(np.clip(-self._log_mean(coef), -LARGEST_LOG, LARGEST_LOG))
            spread = (weights * (ratio - np.log(ratio) - 1)).sum(axis=0) / np.maximum(weights.sum(axis=0), 1e-300)
            most = 1 / max(self.family.variance_floor, 1e-12)
            shape = gamma_shape(spread, most=most)
            experts = replace(experts, shape=shape, floored=shape >= most)
        return experts

    def _blank(self, weights: Array) -> LogLinearExperts:
        n_experts, n_terms = weights.shape[1], self.columns.X.shape[1]
        per_expert = n_terms + 1 + (self.family.kind is GammaExperts)
        return self.family.kind(
            features=self.features,
            offset=self.offset,
            coef=np.zeros((n_experts, n_terms)),
            intercept=np.zeros(n_experts),
            shape=np.ones(n_experts),
            floored=np.zeros(n_experts, bool),
            n_parameters=n_experts * per_expert,
        )

    def _log_mean(self, coef: Array) -> Array:
        return linear_map(self.columns.X, *self.columns.restore(coef)) + self.log_exposure

    def _value(self, experts: LogLinearExperts, coef: Array, weights: Array) -> Array:
        density = experts.log_density_at(self._log_mean(coef), self.y)
        # A row of weight zero may have a density of zero: 0 * log 0 counts as 0.
        counted = np.multiply(weights, density, out=np.zeros_like(weights), where=weights > 0)
        return np.asarray(counted.sum(axis=0) - 0.5 * (coef**2 * self.penalty).sum(axis=1))

    def _step(self, experts: LogLinearExperts, coef: Array, weights: Array, value: Array) -> tuple[Array, Array, Array]:
        log_mean = self._log_mean(coef)
        mean = np.exp(np.clip(log_mean, -LARGEST_LOG, LARGEST_LOG))
        if isinstance(experts, GammaExperts):
            score, curvature = weights * experts.shape * (self.y / mean - 1), weights * experts.shape
        else:
            score, curvature = weights * (self.y - mean), weights * mean
        gradient = -coef * self.penalty
        for rows in blocks(len(score), self.columns.size + len(coef)):
            gradient += score[rows].T @ self.columns.block(rows).T
        hessian = weighted_gram(self.columns, curvature) + np.diag(self.penalty)
        direction = np.stack([solve_psd(h, g[:, None])[:, 0] for h, g in zip(hessian, gradient, strict=True)])
        # Every expert has its own step length: one that would overshoot does not hold the others back.
        step, reached = np.ones(len(coef)), value.copy()
        while (step > SHORTEST_STEP).any():
            tried = self._value(experts, coef + step[:, None] * direction, weights)
            better = tried >= value
            reached = np.where(better, tried, reached)
            if better.all():
                break
            step = np.where(better, step, step * 0.5)
            step[step <= SHORTEST_STEP] = 0.0
        return coef + step[:, None] * direction, reached - value, reached

    def log_density(self, experts: FittedExperts) -> Array:
        """Give the log-density of the training targets from the features made before."""
        assert isinstance(experts, LogLinearExperts)
        log_mean = linear_map(self.columns.X, experts.coef, experts.intercept) + self.log_exposure
        return experts.log_density_at(log_mean, self.y)


def gamma_shape(spread: Array, *, most: float) -> Array:
    """Solve `log(s) - digamma(s) = spread` for the shape s, the maximum of the Gamma likelihood, at most `most`.

    `spread` is the mean of `r - log(r) - 1`, r being targets over means.

    Example:
        >>> gamma_shape(np.array([0.5772156649, 0.0]), most=1e6).round(6)
        array([1.e+00, 1.e+06])
    """
    s = np.maximum(spread, 0.5 / most)
    shape = (3 - s + np.sqrt((s - 3) ** 2 + 24 * s)) / (12 * s)
    for _ in range(20):
        slope = 1 / shape - special.polygamma(1, shape)
        shape = np.maximum(shape - (np.log(shape) - special.digamma(shape) - s) / slope, 0.1 * shape)
    return np.where(spread <= 0.5 / most, most, np.minimum(shape, most))
