"""What a gate, its fitted parameters and its trainer are: the contract that EM works with."""

from abc import ABC, abstractmethod

from sklearn.base import BaseEstimator

from mixtura.classical.columns import Array
from mixtura.classical.data import ColumnChoice, Data
from mixtura.classical.initial import first_division


class FittedGate(ABC):
    """A gate with its parameters: an immutable value."""

    n_parameters: int
    penalty: float

    @abstractmethod
    def log_proba(self, X: Array) -> Array:
        """Give the log-probability of every expert at every row, shape (n_samples, n_experts)."""

    def log_score(self, X: Array) -> Array:
        """Give the gate's part of the log-likelihood, which is more than `log_proba` if the gate models X too."""
        return self.log_proba(X)


class GateTrainer(ABC):
    """A gate bound to training data: what can be prepared once for all EM iterations is prepared here."""

    # Without it the likelihood may fall, and EM keeps the best parameters that it saw.
    monotone: bool = True

    @abstractmethod
    def fit(self, weights: Array, previous: FittedGate | None) -> FittedGate:
        """Fit the gate to responsibilities times sample weights (n_samples, n_experts), starting from `previous`."""

    @abstractmethod
    def log_score(self, gate: FittedGate) -> Array:
        """Give the gate's part of the log-likelihood at the training rows, shape (n_samples, n_experts).

        For a gate that models p(k | x) these are log-probabilities, for one that models p(k, x) joint log-densities.
        """


class Gate(BaseEstimator, ABC):
    """A kind of gate: its hyper-parameters and nothing else, so that it can be cloned and searched over."""

    # A fixed division is never re-seeded.
    fixed: bool = False

    # The columns that it looks at, by number or name; None for all, an empty choice for a gate that looks at nothing.
    columns: ColumnChoice = None

    def divide(self, data: Data, n_experts: int, *, restart: int, seed: int) -> Array:
        """Give the division that a restart begins with, shape (n_samples, n_experts), rows sum to one."""
        return first_division(data, n_experts, restart=restart, seed=seed, columns=data.column_numbers(self.columns))

    @abstractmethod
    def bind(self, data: Data, n_experts: int, *, seed: int = 0) -> GateTrainer:
        """Check the gate against the data and prepare its training."""
