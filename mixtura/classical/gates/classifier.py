"""Any probabilistic classifier as gate: it learns which expert is responsible."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone

from mixtura.classical.columns import Array
from mixtura.classical.data import ColumnChoice, Data, pick
from mixtura.classical.experts.estimator import NEGLIGIBLE, estimator_values, weight_argument
from mixtura.classical.gates.base import FittedGate, Gate, GateTrainer
from mixtura.errors import UserError


@dataclass(frozen=True, kw_only=True)
class ClassifierFitted(FittedGate):
    """A fitted classifier whose classes are the experts' numbers."""

    estimator: Any
    columns: NDArray[np.intp] | None
    n_experts: int
    n_parameters: int = 0
    penalty: float = 0.0

    def log_proba(self, X: Array) -> Array:
        """Give the log-probability of every expert, shape (n_samples, n_experts)."""
        return np.log(estimator_values(self.estimator, pick(X, self.columns), np.arange(self.n_experts)))


class ClassifierGate(Gate):
    """Gate by any classifier with `predict_proba`: a forest, nearest neighbours, a neural network, a pipeline.

    It is fitted to the responsibilities as sample weights of the experts' numbers, or, where it takes no weights, to
    the number of the most responsible expert. The likelihood may then fall on the way; EM keeps the best parameters.

    Args:
        estimator: the classifier; it is cloned.
        columns: the columns to look at, by number or name; None for all.

    Example:
        >>> from sklearn.tree import DecisionTreeClassifier
        >>> from mixtura.classical import MoERegressor
        >>> X = np.linspace(-1, 1, 100)[:, None]
        >>> y = np.abs(X[:, 0]) + 0.01 * np.sin(50 * X[:, 0])
        >>> gate = ClassifierGate(DecisionTreeClassifier(max_depth=1))
        >>> MoERegressor(2, gate=gate, random_state=0).fit(X, y).score(X, y) > 0.99
        True
    """

    def __init__(self, estimator: Any, *, columns: ColumnChoice = None) -> None:
        self.estimator = estimator
        self.columns = columns

    def bind(self, data: Data, n_experts: int, *, seed: int = 0) -> "ClassifierTrainer":  # noqa: ARG002  clone has its own
        """Check that the classifier gives probabilities."""
        if not hasattr(self.estimator, "predict_proba") or not hasattr(self.estimator, "fit"):
            raise UserError(f"expected a gate classifier with predict_proba, got {self.estimator!r}; pass another one")
        return ClassifierTrainer(self, data, n_experts)


class ClassifierTrainer(GateTrainer):
    """A classifier as gate, bound to data."""

    monotone = False

    def __init__(self, gate: ClassifierGate, data: Data, n_experts: int) -> None:
        self.gate, self.n_experts, self.X = gate, n_experts, data.X
        self.numbers = data.column_numbers(gate.columns)

    def fit(self, weights: Array, previous: FittedGate | None) -> ClassifierFitted:  # noqa: ARG002  refitted afresh
        """Fit a clone to the experts' numbers under their responsibilities."""
        estimator, X = clone(self.gate.estimator), pick(self.X, self.numbers)
        argument = weight_argument(estimator)
        if argument is None:
            estimator.fit(X, weights.argmax(axis=1))
        else:
            rows, labels = np.nonzero(weights > NEGLIGIBLE * weights.max())
            estimator.fit(X[rows], labels, **{argument: weights[rows, labels]})
        return ClassifierFitted(estimator=estimator, columns=self.numbers, n_experts=self.n_experts)

    def log_score(self, gate: FittedGate) -> Array:
        """Give the log-probabilities at the training rows."""
        return gate.log_proba(self.X)
