"""The softmax gate by least squares on the logarithms of the posteriors: algorithm 2 of Jordan and Jacobs (1994)."""

import numpy as np

from mixtura.classical.checks import check_at_least
from mixtura.classical.columns import Array, Columns, linear_map
from mixtura.classical.data import ColumnChoice, Data, pick
from mixtura.classical.gates.base import FittedGate, Gate, GateTrainer
from mixtura.classical.gates.softmax import FeatureMap, SoftmaxFitted
from mixtura.classical.least_squares import least_squares
from mixtura.classical.softmax import SoftmaxFit, log_softmax


class LogPosteriorGate(Gate):
    """Softmax gate whose scores are regressed on the logarithms of the responsibilities: no iteration, no Hessian.

    It does not maximise the likelihood, so EM with it may step down; the best parameters seen are kept.

    Args:
        ridge: penalty on the slopes, as in the Ridge of scikit-learn.
        floor: responsibilities below this count as this; the logarithm of zero has no mean.
        columns: the columns to look at, by number or name; None for all.

    Source: Jordan and Jacobs (1994), "A least-squares variant of the algorithm" (their algorithm 2).

    Example:
        >>> X = np.array([[-1.0], [0.0], [1.0]])
        >>> share = 1 / (1 + np.exp(-3 * X))
        >>> data = Data(X=X, y=X, sample_weight=np.ones(3))
        >>> fitted = LogPosteriorGate(ridge=0.0).bind(data, 2).fit(np.hstack([share, 1 - share]), None)
        >>> (fitted.coef[0] - fitted.coef[1]).round(6)
        array([3.])
    """

    def __init__(self, ridge: float = 1e-3, *, floor: float = 1e-3, columns: ColumnChoice = None) -> None:
        self.ridge = ridge
        self.floor = floor
        self.columns = columns

    def bind(self, data: Data, n_experts: int, *, seed: int = 0) -> "LogPosteriorTrainer":  # noqa: ARG002  set by weights
        """Check the settings and measure the scales of the columns."""
        check_at_least("ridge", self.ridge, 0)
        check_at_least("floor", self.floor, np.finfo(float).tiny)
        features = FeatureMap(columns=data.column_numbers(self.columns), transformer=None)
        return LogPosteriorTrainer(self, features, data)


class LogPosteriorTrainer(GateTrainer):
    """A gate by least squares bound to data."""

    monotone = False

    def __init__(self, gate: LogPosteriorGate, features: FeatureMap, data: Data) -> None:
        self.gate, self.features = gate, features
        self.columns = Columns.of(pick(data.X, features.columns), sample_weight=data.sample_weight)

    def fit(self, weights: Array, previous: FittedGate | None) -> SoftmaxFitted:  # noqa: ARG002  closed form
        """Solve one least-squares problem, each row weighted by the sum of its responsibilities."""
        mass = weights.sum(axis=1)
        targets = log_targets(weights, mass, floor=self.gate.floor)
        found = least_squares(self.columns, targets, mass[:, None], ridge=self.gate.ridge)
        coef, intercept = found.coef[0], found.intercept[0]
        fit = SoftmaxFit(coef=coef, intercept=intercept, value=0.0, penalty=0.0, n_steps=1, converged=True)
        return SoftmaxFitted(features=self.features, fit=fit)

    def log_score(self, gate: FittedGate) -> Array:
        """Give the log-probabilities at the training rows."""
        assert isinstance(gate, SoftmaxFitted)
        return log_softmax(linear_map(self.columns.X, gate.coef, gate.intercept))


def log_targets(weights: Array, mass: Array, *, floor: float) -> Array:
    """Give the logarithms of each row's shares, floored, with their mean taken off: (n_samples, n_experts).

    Example:
        >>> log_targets(np.array([[1.0, 0.0]]), np.array([1.0]), floor=np.exp(-2.0))
        array([[ 1., -1.]])
    """
    share = weights / np.where(mass > 0, mass, 1.0)[:, None]
    logs = np.log(np.maximum(share, floor))
    centred: Array = logs - logs.mean(axis=1, keepdims=True)
    return centred
