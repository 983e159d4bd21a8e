"""The softmax gate, on the columns themselves or on features of them, and the gate that looks at nothing."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.base import clone
from sklearn.kernel_approximation import Nystroem
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler

from mixtura.classical.checks import check_at_least, check_whole
from mixtura.classical.columns import Array, Columns, linear_map
from mixtura.classical.data import ColumnChoice, Data, pick
from mixtura.classical.gates.base import FittedGate, Gate, GateTrainer
from mixtura.classical.initial import seed_rows
from mixtura.classical.softmax import SoftmaxFit, fit_softmax, log_softmax
from mixtura.errors import UserError


@dataclass(frozen=True, kw_only=True)
class FeatureMap:
    """A choice of columns and a fitted transformer of them, or none.

    Example:
        >>> FeatureMap(columns=np.array([1]), transformer=None)(np.array([[1.0, 2.0]]))
        array([[2.]])
    """

    columns: Any
    transformer: Any

    def __call__(self, X: Array) -> Array:
        """Give the features of X."""
        chosen = pick(X, self.columns)
        return chosen if self.transformer is None else np.asarray(self.transformer.transform(chosen), dtype=np.float64)


@dataclass(frozen=True, kw_only=True)
class SoftmaxFitted(FittedGate):
    """A fitted softmax gate: `softmax(features(X) @ coef.T + intercept)`.

    Shapes: coef (n_experts, n_features), intercept (n_experts,), both of mean zero over the experts' penalised part.

    Example:
        >>> fit = SoftmaxFit(coef=np.zeros((2, 1)), intercept=np.zeros(2), value=0.0, penalty=0.0, n_steps=0,
        ...     converged=True)
        >>> gate = SoftmaxFitted(features=FeatureMap(columns=None, transformer=None), fit=fit)
        >>> np.exp(gate.log_proba(np.ones((1, 1))))
        array([[0.5, 0.5]])
    """

    features: FeatureMap
    fit: SoftmaxFit

    @property
    def coef(self) -> Array:
        """The slopes (n_experts, n_features); only differences between experts mean anything."""
        return self.fit.coef

    @property
    def intercept(self) -> Array:
        """The constants (n_experts,)."""
        return self.fit.intercept

    @property
    def n_parameters(self) -> int:  # type: ignore[override]  # a value computed from another field, read-only
        """The free coefficients: one expert is the reference."""
        return (len(self.coef) - 1) * (int(self.coef.shape[1]) + 1)

    @property
    def penalty(self) -> float:  # type: ignore[override]  # a value computed from another field, read-only
        """What the ridge takes from the objective."""
        return self.fit.penalty

    def log_proba(self, X: Array) -> Array:
        """Give the log-probability of every expert, shape (n_samples, n_experts)."""
        return log_softmax(linear_map(self.features(X), self.coef, self.intercept))


class SoftmaxGate(Gate):
    """Multinomial logistic gate, fitted by Newton's method with a ridge and a line search.

    Args:
        ridge: penalty on the coefficients of the standardised features; 0 for none.
        features: None for the columns themselves; "polynomial" (of `degree`), "kernel" (a Nystroem map of RBF kernels
            at `n_landmarks` rows far from one another), or any transformer of scikit-learn, fitted without weights.
        degree: of the polynomial.
        n_landmarks: of the kernel.
        columns: the columns to look at, by number or name; None for all.
        max_steps: Newton steps at most in one EM iteration.

    Source: Jordan and Jacobs (1994), section 4.

    Example:
        >>> from mixtura.classical import MoERegressor
        >>> X = np.linspace(-1, 1, 100)[:, None]
        >>> y = np.abs(X[:, 0]) + 0.01 * np.sin(50 * X[:, 0])
        >>> model = MoERegressor(2, gate=SoftmaxGate(ridge=0.1), random_state=0).fit(X, y)
        >>> model.gate_proba([[-1.0]]).max() > 0.9
        np.True_
    """

    def __init__(
        self,
        ridge: float = 0.1,
        *,
        features: Any = None,
        degree: int = 2,
        n_landmarks: int = 50,
        columns: ColumnChoice = None,
        max_steps: int = 1,
    ) -> None:
        self.ridge = ridge
        self.features = features
        self.degree = degree
        self.n_landmarks = n_landmarks
        self.columns = columns
        self.max_steps = max_steps

    def bind(self, data: Data, n_experts: int, *, seed: int = 0) -> "SoftmaxTrainer":  # noqa: ARG002  set by weights
        """Fit the feature map and measure the scales of its columns."""
        check_at_least("ridge", self.ridge, 0)
        check_whole("max_steps", self.max_steps, 1)
        check_whole("degree", self.degree, 1)
        numbers = data.column_numbers(self.columns)
        transformer = self._transformer(pick(data.X, numbers), data.sample_weight, seed=seed)
        return SoftmaxTrainer(self, FeatureMap(columns=numbers, transformer=transformer), data)

    def _transformer(self, X: Array, sample_weight: Array, *, seed: int) -> Any:
        if self.features is None:
            return None
        if self.features in ("polynomial", "kernel"):
            scaler = StandardScaler().fit(X, sample_weight=sample_weight)
            if self.features == "polynomial":
                return make_pipeline(scaler, PolynomialFeatures(self.degree, include_bias=False).fit(X))
            return make_pipeline(scaler, self._kernels(scaler.transform(X), sample_weight, seed=seed))
        if not hasattr(self.features, "transform"):
            raise UserError(
                f"expected features None, 'polynomial', 'kernel' or a transformer, got {self.features!r}; "
                "pass one with fit and transform"
            )
        return clone(self.features).fit(X)

    def _kernels(self, points: Array, sample_weight: Array, *, seed: int) -> Nystroem:
        check_whole("n_landmarks", self.n_landmarks, 1)
        rng, n_seeds = np.random.default_rng(seed), min(self.n_landmarks, len(points))
        landmarks = np.unique(points[seed_rows(points, sample_weight, n_seeds=n_seeds, rng=rng)], axis=0)
        return Nystroem(n_components=len(landmarks), random_state=seed).fit(landmarks)


class SoftmaxTrainer(GateTrainer):
    """A softmax gate bound to data."""

    def __init__(self, gate: SoftmaxGate, features: FeatureMap, data: Data) -> None:
        self.gate, self.features = gate, features
        self.columns = Columns.of(features(data.X), sample_weight=data.sample_weight)

    def fit(self, weights: Array, previous: FittedGate | None) -> SoftmaxFitted:
        """Take a few Newton steps from the previous gate; none lowers the objective."""
        # A warm start may come from a gate of other features.
        size = (weights.shape[1], self.columns.X.shape[1])
        start = previous.fit if isinstance(previous, SoftmaxFitted) and previous.coef.shape == size else None
        fit = fit_softmax(
            self.columns, weights, ridge=self.gate.ridge, start=start, max_steps=self.gate.max_steps, tol=1e-10
        )
        return SoftmaxFitted(features=self.features, fit=fit)

    def log_score(self, gate: FittedGate) -> Array:
        """Give the log-probabilities at the training rows from the features made before."""
        assert isinstance(gate, SoftmaxFitted)
        return log_softmax(linear_map(self.columns.X, gate.coef, gate.intercept))


@dataclass(frozen=True, kw_only=True)
class ConstantFitted(FittedGate):
    """Mixing weights that depend on nothing: log_weight (n_experts,).

    Example:
        >>> ConstantFitted(log_weight=np.log([0.5, 0.5])).n_parameters
        1
    """

    log_weight: Array
    penalty: float = 0.0

    @property
    def n_parameters(self) -> int:  # type: ignore[override]  # a value computed from another field, read-only
        """All weights but one."""
        return len(self.log_weight) - 1

    def log_proba(self, X: Array) -> Array:
        """Give the same log-weights for every row, shape (n_samples, n_experts)."""
        return np.tile(self.log_weight[:, None], len(X)).T


class ConstantGate(Gate):
    """Mixing weights that do not depend on X: a mixture of regressions, or static weights of finished models.

    Example:
        >>> data = Data(X=np.zeros((2, 1)), y=np.zeros((2, 1)), sample_weight=np.ones(2))
        >>> gate = ConstantGate().bind(data, 2).fit(np.array([[1.0, 0.0], [0.5, 0.5]]), None)
        >>> np.exp(gate.log_weight)
        array([0.75, 0.25])
    """

    columns = ()

    def bind(self, data: Data, n_experts: int, *, seed: int = 0) -> "ConstantTrainer":  # noqa: ARG002  looks at nothing
        """Remember the rows."""
        return ConstantTrainer(data)


class ConstantTrainer(GateTrainer):
    """Constant mixing weights bound to data."""

    def __init__(self, data: Data) -> None:
        self.X = data.X

    def fit(self, weights: Array, previous: FittedGate | None) -> ConstantFitted:  # noqa: ARG002  closed form
        """Set the weights to the experts' shares; no share is exactly zero, so that its logarithm is finite."""
        share = np.maximum(weights.sum(axis=0), np.finfo(float).tiny)
        return ConstantFitted(log_weight=np.log(share / share.sum()))

    def log_score(self, gate: FittedGate) -> Array:
        """Give the log-weights for every training row."""
        return gate.log_proba(self.X)
