"""The gate that is not learned: a division of the rows decides."""

from dataclasses import dataclass

import numpy as np

from mixtura.classical.columns import Array
from mixtura.classical.data import Data
from mixtura.classical.division import Division, FittedDivision
from mixtura.classical.gates.base import FittedGate, Gate, GateTrainer


@dataclass(frozen=True, kw_only=True)
class FixedFitted(FittedGate):
    """A division as a gate; it has no parameters that EM could change."""

    division: FittedDivision
    n_parameters: int = 0
    penalty: float = 0.0

    def log_proba(self, X: Array) -> Array:
        """Give the logarithm of the division's shares, shape (n_samples, n_experts)."""
        with np.errstate(divide="ignore"):  # an expert without a share is out of the question
            return np.log(self.division.shares(X))


class FixedGate(Gate):
    """The division itself as gate: what `gate="fixed"` becomes.

    Example:
        >>> from mixtura.classical.division import Centroids
        >>> data = Data(X=np.array([[0.0], [5.0]]), y=np.zeros((2, 1)), sample_weight=np.ones(2))
        >>> trainer = FixedGate(Centroids([[0.0], [4.0]])).bind(data, 2)
        >>> np.exp(trainer.log_score(trainer.fit(np.ones((2, 2)), None))).round(6)
        array([[1., 0.],
               [0., 1.]])
    """

    fixed = True

    def __init__(self, division: Division) -> None:
        self.division = division

    def bind(self, data: Data, n_experts: int, *, seed: int = 0) -> "FixedTrainer":
        """Fit the division to the data once."""
        return FixedTrainer(FixedFitted(division=self.division.fit(data, n_experts, seed=seed)), data)


class FixedTrainer(GateTrainer):
    """A fixed division bound to data."""

    def __init__(self, gate: FixedFitted, data: Data) -> None:
        self.gate = gate
        self.score = gate.log_proba(data.X)

    def fit(self, weights: Array, previous: FittedGate | None) -> FixedFitted:  # noqa: ARG002  nothing changes
        """Give the division as it is."""
        return self.gate

    def log_score(self, gate: FittedGate) -> Array:  # noqa: ARG002  there is one only
        """Give the logarithm of the shares at the training rows."""
        return self.score
