"""Softmax regressions as experts: the M-step is Newton's method on weighted labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixtura.classical.checks import check_at_least, check_whole
from mixtura.classical.columns import Array, Columns, linear_map
from mixtura.classical.data import ColumnChoice, Data
from mixtura.classical.experts.base import ExpertFamily, ExpertTrainer, FittedExperts
from mixtura.classical.experts.features import Features
from mixtura.classical.softmax import SoftmaxFit, fit_softmax, log_softmax


@dataclass(frozen=True, kw_only=True)
class LogisticExperts(FittedExperts):
    """Fitted softmax regressions, one `SoftmaxFit` an expert.

    Example:
        >>> fit = SoftmaxFit(coef=np.zeros((2, 1)), intercept=np.zeros(2), value=0.0, penalty=0.0, n_steps=0,
        ...     converged=True)
        >>> experts = LogisticExperts(features=Features(columns=None), fits=(fit,))
        >>> np.exp(experts.log_proba(np.ones((1, 1))))
        array([[[0.5, 0.5]]])
    """

    features: Features
    fits: tuple[SoftmaxFit, ...]

    @property
    def n_experts(self) -> int:  # type: ignore[override]  # a value computed from another field, read-only
        """The number of experts."""
        return len(self.fits)

    @property
    def n_parameters(self) -> int:  # type: ignore[override]  # a value computed from another field, read-only
        """The free coefficients: one class is the reference."""
        return sum((len(fit.coef) - 1) * (int(fit.coef.shape[1]) + 1) for fit in self.fits)

    @property
    def penalty(self) -> float:  # type: ignore[override]  # a value computed from another field, read-only
        """What the ridge takes from the objective."""
        return sum(fit.penalty for fit in self.fits)

    @property
    def coef(self) -> Array:
        """The slopes (n_experts, n_classes, n_terms)."""
        return np.stack([fit.coef for fit in self.fits])

    @property
    def intercept(self) -> Array:
        """The constants (n_experts, n_classes)."""
        return np.stack([fit.intercept for fit in self.fits])

    def log_proba(self, X: Array) -> Array:
        """Give each expert's log-probabilities, shape (n_samples, n_experts, n_classes)."""
        terms = self.features(X)
        return np.stack([log_softmax(linear_map(terms, fit.coef, fit.intercept)) for fit in self.fits], axis=1)

    def log_density(self, X: Array, y: NDArray[Any]) -> Array:
        """Give each expert's log-probability of the labels, shape (n_samples, n_experts)."""
        return self.log_density_of(self.features(X), y)

    def log_density_of(self, terms: Array, y: NDArray[Any]) -> Array:
        """Give the log-probability of the labels from the features, so that training need not make them again."""
        rows = np.arange(len(y))
        return np.array([log_softmax(linear_map(terms, fit.coef, fit.intercept))[rows, y] for fit in self.fits]).T


class LogisticExpert(ExpertFamily):
    """Softmax regressions: linear classifiers with probabilities.

    Args:
        ridge: penalty on the coefficients of the standardised columns.
        degree: 2 and more add all products of up to that many columns.
        columns: the columns to look at, by number or name; None for all.
        max_steps: Newton steps at most in one EM iteration.

    Source: Jordan and Jacobs (1994), appendix A.

    Example:
        >>> from mixtura.classical import MoEClassifier
        >>> X = np.linspace(-1, 1, 90)[:, None]
        >>> model = MoEClassifier(2, expert=LogisticExpert(ridge=0.1), random_state=0).fit(X, np.abs(X[:, 0]) > 0.5)
        >>> model.score(X, np.abs(X[:, 0]) > 0.5) > 0.9
        True
    """

    def __init__(
        self, ridge: float = 0.1, *, degree: int = 1, columns: ColumnChoice = None, max_steps: int = 1
    ) -> None:
        self.ridge = ridge
        self.degree = degree
        self.columns = columns
        self.max_steps = max_steps

    @property
    def task(self) -> str:
        """These experts classify."""
        return "classification"

    def bind(self, data: Data, n_experts: int, *, seed: int = 0) -> "LogisticTrainer":  # noqa: ARG002  nothing is random
        """Check the hyper-parameters and make the features once."""
        check_at_least("ridge", self.ridge, 0)
        check_whole("degree", self.degree, 1)
        check_whole("max_steps", self.max_steps, 1)
        return LogisticTrainer(self, data, n_experts)


class LogisticTrainer(ExpertTrainer):
    """Softmax regressions bound to data."""

    def __init__(self, family: LogisticExpert, data: Data, n_experts: int) -> None:
        self.family = family
        self.frozen = np.zeros(n_experts, bool)
        self.features = Features(columns=data.column_numbers(family.columns), degree=family.degree)
        self.columns = Columns.of(self.features(data.X), sample_weight=data.sample_weight)
        self.y, self.n_classes = data.y, data.n_classes

    def fit(self, weights: Array, previous: FittedExperts | None) -> LogisticExperts:
        """Take a few Newton steps for every expert; none lowers its objective."""
        labels = np.eye(self.n_classes)[self.y]
        before: Sequence[SoftmaxFit | None] = [None] * weights.shape[1]
        # A warm start may come from experts of other features.
        if isinstance(previous, LogisticExperts) and previous.fits[0].coef.shape[1] == self.columns.X.shape[1]:
            before = previous.fits
        fits = [
            fit_softmax(
                self.columns,
                labels * weights[:, k, None],
                ridge=self.family.ridge,
                start=before[k],
                max_steps=self.family.max_steps,
                tol=1e-10,
            )
            for k in range(weights.shape[1])
        ]
        return LogisticExperts(features=self.features, fits=tuple(fits))

    def log_density(self, experts: FittedExperts) -> Array:
        """Give the log-probability of the training labels from the features made before."""
        assert isinstance(experts, LogisticExperts)
        return experts.log_density_of(self.columns.X, self.y)
