"""What an expert family, its fitted experts and their trainer are: the contract that EM works with."""

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator

from mixtura.classical.columns import Array
from mixtura.classical.data import Data


class FittedExperts(ABC):
    """Experts of one family with their parameters: an immutable value.

    Regression experts have `mean` (n_samples, n_experts, n_outputs) and `distributions`, classifiers `log_proba`
    (n_samples, n_experts, n_classes).
    """

    n_experts: int
    n_parameters: int
    penalty: float

    @abstractmethod
    def log_density(self, X: Array, y: NDArray[Any]) -> Array:
        """Give `log p_k(y_n | x_n)`, shape (n_samples, n_experts)."""

    def mean(self, X: Array) -> Array:
        """Give each expert's prediction, shape (n_samples, n_experts, n_outputs)."""
        raise NotImplementedError

    def distributions(self, X: Array) -> list[Any]:
        """Give each expert's predictive distribution, a frozen one of scipy.stats of shape (n_samples, n_outputs)."""
        raise NotImplementedError

    def log_proba(self, X: Array) -> Array:
        """Give each expert's log-probabilities of the classes, shape (n_samples, n_experts, n_classes)."""
        raise NotImplementedError

    def warnings(self) -> list[str]:
        """Say what a user should know about these parameters: one sentence each."""
        return []

    def finished(self) -> "FittedExperts":
        """Give the experts without what only training needed."""
        return self


class ExpertTrainer(ABC):
    """A family bound to training data: what can be prepared once for all EM iterations is prepared here."""

    # Without it the likelihood may fall, and EM keeps the best parameters that it saw.
    monotone: bool = True
    # Experts that cannot change are not re-seeded when they explain nothing.
    frozen: NDArray[np.bool_]

    @abstractmethod
    def fit(self, weights: Array, previous: FittedExperts | None) -> FittedExperts:
        """Fit every expert to the data under its column of weights (n_samples, n_experts), starting from `previous`."""

    @abstractmethod
    def log_density(self, experts: FittedExperts) -> Array:
        """Give the log-density of the training targets, shape (n_samples, n_experts); the caller may overwrite it."""


class ExpertFamily(BaseEstimator, ABC):
    """A kind of expert: its hyper-parameters and nothing else, so that it can be cloned and searched over."""

    @property
    def task(self) -> str:
        """What the experts do: "regression" or "classification"."""
        return "regression"

    @abstractmethod
    def bind(self, data: Data, n_experts: int, *, seed: int = 0) -> ExpertTrainer:
        """Check the family against the data and prepare its training; raises UserError if the targets do not fit."""
