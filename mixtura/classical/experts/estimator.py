"""Any estimator of scikit-learn's API as an expert."""

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from sklearn.base import clone, is_classifier
from sklearn.calibration import CalibratedClassifierCV
from sklearn.dummy import DummyClassifier
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import KFold, StratifiedKFold
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import has_fit_parameter

from mixtura.classical.checks import check_at_least, check_choice, check_whole
from mixtura.classical.columns import Array
from mixtura.classical.data import ColumnChoice, Data, pick
from mixtura.classical.experts.base import ExpertFamily, ExpertTrainer, FittedExperts
from mixtura.classical.experts.features import floor_warnings, variance_floor
from mixtura.errors import UserError

Weighting = Literal["auto", "sample_weight", "resample", "hard"]
# Rows below this share of the largest weight are left out of an expert's fit.
NEGLIGIBLE = 1e-8
# Each class keeps this probability, so that one that an expert never saw costs a lot instead of everything.
LEAST_PROBA = 1e-4
LOG_2PI = float(np.log(2 * np.pi))


@dataclass(frozen=True, kw_only=True)
class EstimatorExperts(FittedExperts):
    """Fitted estimators; regressors with a noise variance (n_experts, n_outputs) each, classifiers with `n_classes`.

    `held_out` are predictions for the training rows by models that did not see them, kept only while EM runs.
    """

    estimators: tuple[Any, ...]
    columns: NDArray[np.intp] | None
    classes: NDArray[Any]
    variance: Array
    floored: NDArray[np.bool_]
    held_out: Array | None = None
    n_parameters: int = 0
    penalty: float = 0.0

    @property
    def n_experts(self) -> int:  # type: ignore[override]  # a value computed from another field, read-only
        """The number of experts."""
        return len(self.estimators)

    def values(self, X: Array) -> Array:
        """Give each estimator's prediction or class probabilities, shape (n_samples, n_experts, n_outputs)."""
        chosen = pick(X, self.columns)
        return np.stack([estimator_values(e, chosen, self.classes) for e in self.estimators], axis=1)

    def mean(self, X: Array) -> Array:
        """Give each regressor's prediction, shape (n_samples, n_experts, n_outputs)."""
        return self.values(X)

    def log_proba(self, X: Array) -> Array:
        """Give each classifier's log-probabilities, shape (n_samples, n_experts, n_classes)."""
        return np.log(self.values(X))

    def log_density(self, X: Array, y: NDArray[Any]) -> Array:
        """Give the log-density of y under each expert, shape (n_samples, n_experts)."""
        return self.log_density_at(self.values(X), y)

    def log_density_at(self, values: Array, y: NDArray[Any]) -> Array:
        """Give the log-density of y from the estimators' values (n_samples, n_experts, n_outputs)."""
        if len(self.classes):
            return np.log(values[np.arange(len(y)), :, y])
        square = (y[:, None] - values) ** 2 / self.variance
        return np.asarray(-0.5 * (square + np.log(self.variance) + LOG_2PI).sum(axis=2))

    def distributions(self, X: Array) -> list[Any]:
        """Give each regressor's prediction with normal noise."""
        mean, spread = self.mean(X), np.sqrt(self.variance)
        return [stats.norm(mean[:, k], np.broadcast_to(spread[k], mean[:, k].shape)) for k in range(self.n_experts)]

    def warnings(self) -> list[str]:
        """Say which regressors fit their share so well that the noise had to be floored."""
        return floor_warnings(self.floored)

    def finished(self) -> "EstimatorExperts":
        """Forget what only training needed."""
        return replace(self, held_out=None)


def estimator_values(estimator: Any, X: Array, classes: NDArray[Any]) -> Array:
    """Give a regressor's predictions (n_samples, n_outputs) or a classifier's probabilities of all `classes`.

    Classes that the estimator never saw get `LEAST_PROBA`, and so does any other probability below it.
    """
    if not len(classes):
        return np.asarray(estimator.predict(X), dtype=np.float64).reshape(len(X), -1)
    proba = np.zeros((len(X), len(classes)))
    place = {label: k for k, label in enumerate(classes.tolist())}
    known = np.asarray(estimator.classes_).tolist()
    if not set(known) <= place.keys():
        expected = classes.tolist()
        raise UserError(f"expected an expert of the classes {expected}, got one of {known}; fit it on these labels")
    given = np.asarray(estimator.predict_proba(X))
    if given.shape != (len(X), len(known)):
        raise UserError(
            f"expected probabilities of the {len(known)} classes in an expert's share, got {given.shape[1]} columns; "
            "tell an estimator of fixed outputs all labels (skorch: classes=)"
        )
    proba[:, [place[label] for label in known]] = given
    return np.asarray((1 - len(classes) * LEAST_PROBA) * proba + LEAST_PROBA)


class EstimatorExpert(ExpertFamily):
    """Any regressor or classifier of scikit-learn's API as expert; a regressor gets Gaussian noise, one level each.

    A `FrozenEstimator` (sklearn.frozen) around a fitted estimator is used as it is and never fitted again.

    Args:
        estimator: a regressor with `predict` or a classifier with `predict_proba`; pipelines too. It is cloned.
        weighting: how responsibilities reach it: "sample_weight"; "resample", a weighted draw of as many rows; "hard",
            the rows that are the expert's own; "auto" takes sample_weight where the estimator does, else resample.
        cv: None, or a number of folds: responsibilities and noise then come from predictions of held-out rows, as an
            estimator needs that can learn its rows by heart (trees, nearest neighbours, boosting).
        calibrate: wrap a classifier in scikit-learn's CalibratedClassifierCV, which also gives one without
            probabilities (a linear SVM) its `predict_proba`.
        columns: the columns to look at, by number or name; None for all.
        variance_floor: smallest noise variance, as a share of the variance of y; reaching it is a warning.

    The likelihood of such experts may fall from one iteration to the next; EM stops when it has not risen for a while
    and keeps the best parameters. An estimator's parameters cannot be counted: AIC and BIC know its noise level only.

    Example:
        >>> from sklearn.tree import DecisionTreeRegressor
        >>> from mixtura.classical import MoERegressor
        >>> X = np.linspace(-1, 1, 60)[:, None]
        >>> expert = EstimatorExpert(DecisionTreeRegressor(max_depth=2), cv=3)
        >>> model = MoERegressor(2, expert=expert, n_init=1, random_state=0).fit(X, X[:, 0] ** 2)
        >>> model.score(X, X[:, 0] ** 2) > 0.9
        True
    """

    def __init__(
        self,
        estimator: Any,
        *,
        weighting: Weighting = "auto",
        cv: int | None = None,
        calibrate: bool = False,
        columns: ColumnChoice = None,
        variance_floor: float = 1e-6,
    ) -> None:
        self.estimator = estimator
        self.weighting = weighting
        self.cv = cv
        self.calibrate = calibrate
        self.columns = columns
        self.variance_floor = variance_floor

    @property
    def task(self) -> str:
        """What the estimator does."""
        return "classification" if is_classifier(self.estimator) else "regression"

    def bind(self, data: Data, n_experts: int, *, seed: int = 0) -> "EstimatorTrainer":
        """Check that the estimator can be what it is asked to be."""
        check_choice("weighting", self.weighting, ("auto", "sample_weight", "resample", "hard"))
        check_at_least("variance_floor", self.variance_floor, 0)
        if self.cv is not None:
            check_whole("cv", self.cv, 2)
        if not hasattr(self.estimator, "fit") or not hasattr(self.estimator, "predict"):
            raise UserError(f"expected an estimator with fit and predict, got {self.estimator!r}; pass one as expert")
        if data.n_classes and not self.calibrate and not hasattr(self.estimator, "predict_proba"):
            raise UserError(
                f"expected an expert with predict_proba, got {self.estimator!r}; "
                "pass EstimatorExpert(..., calibrate=True) or a classifier with probabilities"
            )
        if self.weighting == "sample_weight" and weight_argument(self.estimator) is None:
            raise UserError(
                f"expected an expert that takes sample_weight, got {self.estimator!r}; use weighting='resample'"
            )
        return EstimatorTrainer(self, data, n_experts, seed=seed)


def weight_argument(estimator: Any) -> str | None:
    """Give the name under which `estimator.fit` takes sample weights, or None; a pipeline's is its last step's.

    Example:
        >>> from sklearn.linear_model import Ridge
        >>> from sklearn.neighbors import KNeighborsRegressor
        >>> from sklearn.pipeline import make_pipeline
        >>> weight_argument(make_pipeline(Ridge())), weight_argument(KNeighborsRegressor())
        ('ridge__sample_weight', None)
    """
    if isinstance(estimator, Pipeline):
        name, last = estimator.steps[-1]
        inner = weight_argument(last)
        return None if inner is None else f"{name}__{inner}"
    return "sample_weight" if has_fit_parameter(estimator, "sample_weight") else None


class EstimatorTrainer(ExpertTrainer):
    """Estimators bound to data."""

    monotone = False

    def __init__(self, family: EstimatorExpert, data: Data, n_experts: int, *, seed: int) -> None:
        self.family, self.seed = family, seed
        self.numbers = data.column_numbers(family.columns)
        self.X, self.y = pick(data.X, self.numbers), data.y
        self.classes = data.classes if data.n_classes else np.array([])
        # A frozen classifier speaks of the user's labels, a fitted one of whatever labels it is given: the same.
        self.labels = data.classes[data.y] if data.n_classes else data.y[:, 0] if data.y.shape[1] == 1 else data.y
        self.sample_weight = data.sample_weight
        self.floor = (
            np.zeros(0) if data.n_classes else variance_floor(data.y, data.sample_weight, family.variance_floor)
        )
        frozen = isinstance(family.estimator, FrozenEstimator)
        self.frozen = np.full(n_experts, frozen)
        self.monotone = frozen
        self.known = estimator_values(family.estimator, self.X, self.classes) if frozen else None

    def fit(self, weights: Array, previous: FittedExperts | None) -> EstimatorExperts:  # noqa: ARG002  refitted afresh
        """Fit a clone for every expert to its weighted rows, then measure its noise."""
        if self.known is not None:
            estimators = [self.family.estimator] * weights.shape[1]
            values = np.repeat(self.known[:, None], weights.shape[1], axis=1)
        else:
            estimators = [self._fit_one(weights[:, k], k) for k in range(weights.shape[1])]
            columns = [self._training_values(e, weights[:, k], k) for k, e in enumerate(estimators)]
            values = np.stack(columns, axis=1)
        variance = np.zeros((len(estimators), 0))
        floored = np.zeros(len(estimators), bool)
        if not len(self.classes):
            total = np.maximum(weights.sum(axis=0), 1e-300)
            square = (self.y[:, None] - values) ** 2
            measured = np.einsum("nk,nkm->km", weights, square) / total[:, None]
            variance, floored = np.maximum(measured, self.floor), (measured < self.floor).any(axis=1)
        return EstimatorExperts(
            estimators=tuple(estimators),
            columns=self.numbers,
            classes=self.classes,
            variance=variance,
            floored=floored,
            held_out=values,
            n_parameters=variance.size,
        )

    def _fit_one(self, weight: Array, k: int) -> Any:
        rows = np.flatnonzero(weight > NEGLIGIBLE * weight.max(initial=0.0))
        if not len(rows):
            rows = np.arange(len(weight))
            weight = self.sample_weight
        if len(self.classes) and len(np.unique(self.y[rows])) == 1:
            return DummyClassifier(strategy="prior").fit(self.X[rows], self.labels[rows])
        estimator = clone(self.family.estimator)
        if self.family.calibrate:
            folds = min(3, int(np.unique(self.y[rows], return_counts=True)[1].min()))
            if folds < 2:
                return DummyClassifier(strategy="prior").fit(self.X[rows], self.labels[rows], weight[rows])
            estimator = CalibratedClassifierCV(estimator, cv=folds)
        argument = weight_argument(estimator)
        if argument is not None and self.family.weighting in ("auto", "sample_weight"):
            return estimator.fit(self.X[rows], self.labels[rows], **{argument: weight[rows]})
        if self.family.weighting == "hard":
            share = weight / self.sample_weight
            rows = np.flatnonzero(share > 0.5) if (share > 0.5).any() else rows
        else:
            rows = resample(weight, seed=self.seed + k)
        if len(self.classes) and len(np.unique(self.y[rows])) == 1:
            return DummyClassifier(strategy="prior").fit(self.X[rows], self.labels[rows])
        return estimator.fit(self.X[rows], self.labels[rows])

    def _training_values(self, estimator: Any, weight: Array, k: int) -> Array:
        values = estimator_values(estimator, self.X, self.classes)
        if self.family.cv is None or isinstance(estimator, DummyClassifier):
            return values
        folder = StratifiedKFold if len(self.classes) else KFold
        splitter = folder(self.family.cv, shuffle=True, random_state=self.seed)
        for train, test in splitter.split(self.X, self.y if len(self.classes) else None):
            kept = np.zeros(len(weight))
            kept[train] = weight[train]
            values[test] = estimator_values(self._fit_one(kept, k), self.X[test], self.classes)
        return values

    def log_density(self, experts: FittedExperts) -> Array:
        """Give the log-density of the training targets, of held-out predictions where `cv` asks for them."""
        assert isinstance(experts, EstimatorExperts)
        assert experts.held_out is not None
        return experts.log_density_at(experts.held_out, self.y)


def resample(weight: Array, *, seed: int) -> NDArray[np.intp]:
    """Draw as many rows as there are, each in proportion to its weight and nearly that often (systematic resampling).

    Example:
        >>> resample(np.array([1.0, 0.0, 3.0, 0.0]), seed=0)
        array([0, 2, 2, 2])
    """
    n_samples = len(weight)
    places = (np.arange(n_samples) + np.random.default_rng(seed).uniform()) / n_samples
    reached = np.cumsum(weight) / weight.sum()
    return np.asarray(np.minimum(np.searchsorted(reached, places, side="right"), np.flatnonzero(weight)[-1]))
