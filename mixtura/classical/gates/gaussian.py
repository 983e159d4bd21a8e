"""The Gaussian gate: each expert owns a normal distribution of X, so that gate and data density are fitted in one."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

from mixtura.classical.checks import check_at_least, check_choice
from mixtura.classical.columns import Array, Columns
from mixtura.classical.data import ColumnChoice, Data, pick
from mixtura.classical.gates.base import FittedGate, Gate, GateTrainer
from mixtura.classical.least_squares import weighted_gram
from mixtura.classical.softmax import log_softmax

LOG_2PI = float(np.log(2 * np.pi))
Covariance = Literal["full", "diagonal", "shared"]


@dataclass(frozen=True, kw_only=True)
class GaussianFitted(FittedGate):
    """A fitted Gaussian gate.

    Shapes: log_weight (n_experts,); mean (n_experts, n_features) and covariance (n_experts, n_features, n_features) in
    the units of the standardised columns, whose center and scale are (n_features,).

    Example:
        >>> gate = GaussianFitted(columns=None, center=np.zeros(1), scale=np.ones(1), log_weight=np.log([0.5, 0.5]),
        ...     mean=np.array([[-1.0], [1.0]]), covariance=np.ones((2, 1, 1)), n_parameters=5)
        >>> np.exp(gate.log_proba(np.zeros((1, 1))))
        array([[0.5, 0.5]])
    """

    columns: NDArray[np.intp] | None
    center: Array
    scale: Array
    log_weight: Array
    mean: Array
    covariance: Array
    n_parameters: int
    penalty: float = 0.0

    def log_joint(self, X: Array) -> Array:
        """Give `log p(k, x)`, shape (n_samples, n_experts)."""
        standard = (pick(X, self.columns) - self.center) / self.scale
        out = np.empty((len(self.mean), len(X)))
        for k, covariance in enumerate(self.covariance):
            factor = linalg.cholesky(covariance, lower=True)
            white = linalg.solve_triangular(factor, (standard - self.mean[k]).T, lower=True)
            out[k] = self.log_weight[k] - np.log(np.diag(factor)).sum() - 0.5 * (white**2).sum(axis=0)
        return out.T - (np.log(self.scale).sum() + 0.5 * len(self.scale) * LOG_2PI)

    def log_score(self, X: Array) -> Array:
        """Give the joint log-density: EM's likelihood is that of X and y together."""
        return self.log_joint(X)

    def log_proba(self, X: Array) -> Array:
        """Give `log p(k | x)`, shape (n_samples, n_experts)."""
        return log_softmax(self.log_joint(X))


class GaussianGate(Gate):
    """Gate by Bayes' rule from one normal distribution of X for each expert; EM fits the joint density of X and y.

    It needs no inner iteration, and knows where there are no data: `gate_.log_joint`. The log-likelihood of the fit is
    that of X and y together.

    Args:
        covariance: "full", "diagonal", or "shared" (one full covariance for all experts).
        variance_floor: smallest variance in any direction, as a share of the columns' own.
        columns: the columns to look at, by number or name; None for all.

    Source: Xu, Jordan and Hinton (1995), "An alternative model for mixtures of experts".

    Example:
        >>> from mixtura.classical import MoERegressor
        >>> X = np.concatenate([np.linspace(-2, -1, 50), np.linspace(1, 2, 50)])[:, None]
        >>> y = np.sign(X[:, 0]) + 0.01 * np.sin(50 * X[:, 0])
        >>> model = MoERegressor(2, gate=GaussianGate(), random_state=0).fit(X, y)
        >>> model.gate_proba([[-1.5], [1.5]]).max(axis=1).round(2)
        array([1., 1.])
    """

    def __init__(
        self,
        covariance: Covariance = "full",
        *,
        variance_floor: float = 1e-4,
        columns: ColumnChoice = None,
    ) -> None:
        self.covariance = covariance
        self.variance_floor = variance_floor
        self.columns = columns

    def bind(self, data: Data, n_experts: int, *, seed: int = 0) -> "GaussianTrainer":  # noqa: ARG002  nothing is random
        """Measure the scales of the columns."""
        check_choice("covariance", self.covariance, ("full", "diagonal", "shared"))
        check_at_least("variance_floor", self.variance_floor, 1e-12)
        return GaussianTrainer(self, data)


class GaussianTrainer(GateTrainer):
    """A Gaussian gate bound to data."""

    def __init__(self, gate: GaussianGate, data: Data) -> None:
        self.gate, self.X = gate, data.X
        self.numbers = data.column_numbers(gate.columns)
        self.columns = Columns.of(pick(data.X, self.numbers), sample_weight=data.sample_weight)

    def fit(self, weights: Array, previous: FittedGate | None) -> GaussianFitted:  # noqa: ARG002  closed form
        """Set weights, means and covariances to the experts' shares; the floor is the constrained maximum."""
        gram = weighted_gram(self.columns, weights)
        total = np.maximum(gram[:, -1, -1], np.finfo(float).tiny)
        mean = gram[:, :-1, -1] / total[:, None]
        scatter = gram[:, :-1, :-1] - total[:, None, None] * mean[:, :, None] * mean[:, None, :]
        n_experts, size = mean.shape
        if self.gate.covariance == "shared":
            covariance = np.broadcast_to(scatter.sum(axis=0) / total.sum(), scatter.shape)
            spreads = size * (size + 1) // 2
        else:
            covariance = scatter / total[:, None, None]
            spreads = n_experts * (size if self.gate.covariance == "diagonal" else size * (size + 1) // 2)
        lift = _floor_diagonal if self.gate.covariance == "diagonal" else _floor
        return GaussianFitted(
            columns=self.numbers,
            center=self.columns.center,
            scale=self.columns.scale,
            log_weight=np.log(total / total.sum()),
            mean=mean,
            covariance=np.stack([lift(matrix, self.gate.variance_floor) for matrix in covariance]),
            n_parameters=n_experts - 1 + mean.size + spreads,
        )

    def log_score(self, gate: FittedGate) -> Array:
        """Give the joint log-density of expert and row at the training rows."""
        assert isinstance(gate, GaussianFitted)
        return gate.log_joint(self.X)


def _floor(matrix: Array, least: float) -> Array:
    values, vectors = np.linalg.eigh(matrix)
    return np.asarray((vectors * np.maximum(values, least)) @ vectors.T)


def _floor_diagonal(matrix: Array, least: float) -> Array:
    return np.diag(np.maximum(np.diag(matrix), least))
