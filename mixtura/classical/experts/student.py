"""Linear experts with Student-t noise: outliers move them little."""

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special, stats

from mixtura.classical.checks import check_at_least, check_whole
from mixtura.classical.columns import Array, Columns, linear_map
from mixtura.classical.data import ColumnChoice, Data
from mixtura.classical.experts.base import ExpertFamily, ExpertTrainer, FittedExperts
from mixtura.classical.experts.features import Features, floor_warnings, variance_floor
from mixtura.classical.least_squares import least_squares
from mixtura.errors import UserError

# Above 1, so that the mean exists, which is what is predicted.
DF_RANGE = (1.1, 200.0)


@dataclass(frozen=True, kw_only=True)
class StudentTExperts(FittedExperts):
    """Fitted lines with Student-t noise.

    Shapes: coef (n_experts, n_terms), intercept, scale (in units of y) and df (n_experts,).

    Example:
        >>> experts = StudentTExperts(features=Features(columns=None), coef=np.ones((1, 1)), intercept=np.zeros(1),
        ...     scale=np.ones(1), df=np.array([1.0]), floored=np.array([False]), n_parameters=3, penalty=0.0)
        >>> np.exp(experts.log_density(np.zeros((1, 1)), np.zeros((1, 1)))).round(6) == (1 / np.pi).__round__(6)
        array([[ True]])
    """

    features: Features
    coef: Array
    intercept: Array
    scale: Array
    df: Array
    floored: NDArray[np.bool_]
    n_parameters: int
    penalty: float

    @property
    def n_experts(self) -> int:  # type: ignore[override]  # a value computed from another field, read-only
        """The number of experts."""
        return len(self.coef)

    def mean(self, X: Array) -> Array:
        """Give each expert's line, shape (n_samples, n_experts, 1)."""
        return linear_map(self.features(X), self.coef, self.intercept)[:, :, None]

    def log_density(self, X: Array, y: NDArray[Any]) -> Array:
        """Give the log-density of y (n_samples, 1) under each expert, shape (n_samples, n_experts)."""
        return log_t(y - self.mean(X)[:, :, 0], self.scale, self.df)

    def distributions(self, X: Array) -> list[Any]:
        """Give each expert's t distribution; its variance is infinite for df of at most 2."""
        mean = self.mean(X)
        return [stats.t(self.df[k], mean[:, k], self.scale[k]) for k in range(self.n_experts)]

    def warnings(self) -> list[str]:
        """Say which experts fit their share so well that the noise had to be floored."""
        return floor_warnings(self.floored)


def log_t(residual: Array, scale: Any, df: Any) -> Array:
    """Give the log-density of Student's t at residuals; scale and df broadcast.

    Example:
        >>> log_t(np.array([0.0, 2.0]), 2.0, 3.0).round(4)
        array([-1.694 , -2.2694])
    """
    constant = special.gammaln((df + 1) / 2) - special.gammaln(df / 2) - 0.5 * np.log(df * np.pi) - np.log(scale)
    return np.asarray(constant - 0.5 * (df + 1) * np.log1p((residual / scale) ** 2 / df))


class StudentTExpert(ExpertFamily):
    """Linear experts with Student-t noise, for data with outliers; one output.

    Args:
        df: degrees of freedom, the same for all; "estimate" fits one for each expert, between 1.1 and 200.
        alpha: ridge penalty, as in `LinearExpert`.
        degree: 2 and more add all products of up to that many columns.
        columns: the columns to look at, by number or name; None for all.
        variance_floor: smallest squared scale, as a share of the variance of y; reaching it is a warning.
        max_steps: reweighting steps in one EM iteration.

    Source: Chamroukhi (2016), "Robust mixture of experts modeling using the t distribution".

    Example:
        >>> from mixtura.classical import MoERegressor
        >>> X = np.linspace(0, 1, 50)[:, None]
        >>> y = 2 * X[:, 0] + 0.01 * np.sin(50 * X[:, 0])
        >>> y[-1] = 10.0
        >>> MoERegressor(1, expert=StudentTExpert()).fit(X, y).experts_.coef.round(1)
        array([[2.]])
    """

    def __init__(
        self,
        df: float | Literal["estimate"] = 4.0,
        *,
        alpha: float = 0.0,
        degree: int = 1,
        columns: ColumnChoice = None,
        variance_floor: float = 1e-6,
        max_steps: int = 2,
    ) -> None:
        self.df = df
        self.alpha = alpha
        self.degree = degree
        self.columns = columns
        self.variance_floor = variance_floor
        self.max_steps = max_steps

    def bind(self, data: Data, n_experts: int, *, seed: int = 0) -> "StudentTTrainer":  # noqa: ARG002  nothing is random
        """Check the hyper-parameters and make the features once."""
        if self.df != "estimate":
            check_at_least("df", self.df, DF_RANGE[0])
        check_at_least("alpha", self.alpha, 0)
        check_at_least("variance_floor", self.variance_floor, 0)
        check_whole("degree", self.degree, 1)
        check_whole("max_steps", self.max_steps, 1)
        if data.y.shape[1] != 1:
            raise UserError(f"expected one output for {self!r}, got {data.y.shape[1]}; fit one model for each")
        return StudentTTrainer(self, data, n_experts)


class StudentTTrainer(ExpertTrainer):
    """Student-t experts bound to data."""

    def __init__(self, family: StudentTExpert, data: Data, n_experts: int) -> None:
        self.family, self.y = family, data.y
        self.frozen = np.zeros(n_experts, bool)
        self.features = Features(columns=data.column_numbers(family.columns), degree=family.degree)
        self.columns = Columns.of(self.features(data.X), sample_weight=data.sample_weight)
        self.floor = float(variance_floor(data.y, data.sample_weight, family.variance_floor)[0])

    def fit(self, weights: Array, previous: FittedExperts | None) -> StudentTExperts:
        """Reweight rows by how far they lie out and solve the least squares again; no step lowers the objective."""
        # A warm start may come from experts of other features.
        if isinstance(previous, StudentTExperts) and previous.coef.shape[1] == self.columns.X.shape[1]:
            experts = previous
        else:
            df = 10.0 if self.family.df == "estimate" else float(self.family.df)
            experts = self._solve(weights, np.ones_like(weights), df=np.full(weights.shape[1], df))
        for _ in range(self.family.max_steps):
            distance = (self._residual(experts) / experts.scale) ** 2
            experts = self._solve(weights, (experts.df + 1) / (experts.df + distance), df=experts.df)
        return self._fit_df(experts, weights) if self.family.df == "estimate" else experts

    def _solve(self, weights: Array, certainty: Array, *, df: Array) -> StudentTExperts:
        fit = least_squares(self.columns, self.y, weights * certainty, ridge=self.family.alpha)
        total = weights.sum(axis=0)
        pooled = float(fit.scatter.sum()) / max(float(total.sum()), 1e-300)
        variance = np.where(total > 0, fit.scatter[:, 0, 0] / np.maximum(total, 1e-300), pooled)
        floored = variance < self.floor
        variance = np.maximum(variance, self.floor)
        n_experts, _, n_terms = fit.coef.shape
        square = float(((fit.coef[:, 0] ** 2).sum(axis=1) / variance).sum())
        return StudentTExperts(
            features=self.features,
            coef=fit.coef[:, 0],
            intercept=fit.intercept[:, 0],
            scale=np.sqrt(variance),
            df=df,
            floored=floored,
            n_parameters=n_experts * (n_terms + 2 + (self.family.df == "estimate")),
            penalty=0.5 * self.family.alpha * square,
        )

    def _fit_df(self, experts: StudentTExperts, weights: Array) -> StudentTExperts:
        residual, df = self._residual(experts), experts.df.copy()

        def loss(log_df: float, k: int) -> float:
            return -float(weights[:, k] @ log_t(residual[:, k], experts.scale[k], np.exp(log_df)))

        for k in range(len(df)):
            found = optimize.minimize_scalar(loss, bounds=np.log(DF_RANGE), args=(k,), method="bounded")
            if found.fun < loss(np.log(df[k]), k):
                df[k] = np.exp(found.x)
        return replace(experts, df=df)

    def _residual(self, experts: StudentTExperts) -> Array:
        return np.asarray(self.y - linear_map(self.columns.X, experts.coef, experts.intercept))

    def log_density(self, experts: FittedExperts) -> Array:
        """Give the log-density of the training targets from the features made before."""
        assert isinstance(experts, StudentTExperts)
        return log_t(self._residual(experts), experts.scale, experts.df)
