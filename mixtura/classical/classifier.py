"""The mixture of experts for classification."""

from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import ClassifierMixin
from sklearn.utils.class_weight import compute_sample_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from mixtura.classical.checks import check_choice, check_size
from mixtura.classical.columns import Array
from mixtura.classical.data import Data
from mixtura.classical.experts.base import ExpertFamily
from mixtura.classical.experts.choose import choose_experts
from mixtura.classical.mixture import Mixture
from mixtura.classical.predictive import Pooling, Uncertainty, pool
from mixtura.errors import UserError


class MoEClassifier(ClassifierMixin, Mixture):
    """Mixture of experts for classification, fitted by EM.

    Args:
        n_experts: how many; None for the number of experts listed in `expert`, or 2.
        expert: what the experts are: "logistic", a family such as `LogisticExpert(ridge=0.1)`, any classifier with
            `predict_proba`, or a list of these, one for each expert.
        gate: as in `MoERegressor`; "constant" weights finished classifiers statically, "softmax" by the row.
        pooling: "weighted" averages the experts' probabilities by the gate, "highest" asks the expert of the highest
            gate alone, "vote" gives each expert one vote, for its most probable class, weighted by the gate.
        class_weight: None, "balanced" or a dictionary {label: weight}, multiplied into the sample weights.
        division, n_init, tol, max_iter, temperature, random_state, warm_start, verbose, n_jobs: as in `MoERegressor`.

    Attributes:
        classes_: the labels, sorted. The others are those of `MoERegressor`.

    Source: Jacobs, Jordan, Nowlan and Hinton (1991); Jordan and Jacobs (1994).

    Example:
        >>> from sklearn.datasets import load_iris
        >>> X, y = load_iris(return_X_y=True)
        >>> MoEClassifier(n_experts=2, random_state=0).fit(X, y).score(X, y) > 0.95
        True
    """

    def __init__(
        self,
        n_experts: int | None = None,
        *,
        expert: Any = "logistic",
        gate: Any = "softmax",
        pooling: Pooling = "weighted",
        division: Any = None,
        class_weight: Any = None,
        n_init: int = 3,
        tol: float = 1e-5,
        max_iter: int = 500,
        temperature: float = 1.0,
        random_state: Any = None,
        warm_start: bool = False,
        verbose: int = 0,
        n_jobs: int | None = None,
    ) -> None:
        self.n_experts = n_experts
        self.expert = expert
        self.gate = gate
        self.pooling = pooling
        self.division = division
        self.class_weight = class_weight
        self.n_init = n_init
        self.tol = tol
        self.max_iter = max_iter
        self.temperature = temperature
        self.random_state = random_state
        self.warm_start = warm_start
        self.verbose = verbose
        self.n_jobs = n_jobs

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Fit gate and experts.

        Args:
            X: (n_samples, n_features), array or DataFrame.
            y: (n_samples,) labels.
            sample_weight: (n_samples,), non-negative.
        """
        data, used = self._data(X, y, sample_weight)
        return self._fit(data, used=used)

    def _data(
        self, X: Any, y: Any, sample_weight: Any, *, reset: bool = True, known: bool = False
    ) -> tuple[Data, NDArray[np.bool_]]:
        """Check what the user passed; `used` marks the rows with weight, which alone are data."""
        X, y = validate_data(self, X, y, dtype=np.float64, reset=reset)
        sorted_labels(y)  # refuses what scikit-learn's own check would stumble over
        check_classification_targets(y)
        check_choice("pooling", self.pooling, ("weighted", "highest", "vote"))
        check_size("X", X)
        weight = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
        if self.class_weight is not None:
            class_weight = compute_sample_weight(self.class_weight, y)
            if not (class_weight >= 0).all():
                raise UserError(f"expected class weights of at least 0, got {self.class_weight!r}; correct them")
            weight = weight * class_weight
        used = weight > 0
        X, y, weight = (X, y, weight) if used.all() else (X[used], y[used], weight[used])
        if not known:
            self.classes_ = np.unique(y)
        labels = self._target(y)
        names = tuple(self.feature_names_in_) if hasattr(self, "feature_names_in_") else None
        return Data(X=X, y=labels, sample_weight=weight, classes=self.classes_, feature_names=names), used

    def _experts(self) -> tuple[ExpertFamily, int]:
        return choose_experts(self.expert, self.n_experts, task="classification")

    def predict_proba(self, X: Any) -> Array:
        """Give the probabilities of the classes, shape (n_samples, n_classes)."""
        checked = self._checked(X)
        gate = pool(np.exp(self.gate_.log_proba(checked)), self.pooling)
        proba = np.exp(self.experts_.log_proba(checked))
        if self.pooling == "vote":
            proba = np.eye(len(self.classes_))[proba.argmax(axis=2)]
        pooled: Array = np.einsum("nk,nkc->nc", gate, proba)
        return np.asarray(pooled / pooled.sum(axis=1, keepdims=True))

    def predict_log_proba(self, X: Any) -> Array:
        """Give the logarithms of the probabilities, shape (n_samples, n_classes)."""
        return np.log(np.maximum(self.predict_proba(X), np.finfo(float).tiny))

    def predict(self, X: Any) -> NDArray[Any]:
        """Give the most probable labels, shape (n_samples,)."""
        best = self.predict_proba(X).argmax(axis=1)
        return np.asarray(self.classes_[best])

    def expert_predict(self, X: Any) -> NDArray[Any]:
        """Give each expert's own label, shape (n_samples, n_experts)."""
        checked = self._checked(X)
        return np.asarray(self.classes_[self.experts_.log_proba(checked).argmax(axis=2)])

    def expert_proba(self, X: Any) -> Array:
        """Give each expert's own probabilities, shape (n_samples, n_experts, n_classes)."""
        checked = self._checked(X)
        return np.exp(self.experts_.log_proba(checked))

    def uncertainty(self, X: Any) -> Uncertainty:
        """Tell kinds of uncertainty apart, in nats: `total`, the entropy of the prediction, is noise + between.

        `noise` is the experts' mean entropy and `between` the information that the choice of an expert carries about
        the label; `gate_entropy` is the gate's doubt.
        """
        checked = self._checked(X)
        gate = pool(np.exp(self.gate_.log_proba(checked)), self.pooling)
        log_proba = self.experts_.log_proba(checked)
        proba = np.exp(log_proba)
        noise = -np.einsum("nk,nkc,nkc->n", gate, proba, np.maximum(log_proba, np.log(np.finfo(float).tiny)))
        pooled = np.einsum("nk,nkc->nc", gate, proba)
        total = -(pooled * np.log(np.maximum(pooled, np.finfo(float).tiny))).sum(axis=1)
        entropy = -(gate * np.log(np.maximum(gate, np.finfo(float).tiny))).sum(axis=1)
        return Uncertainty(noise=noise, between=np.maximum(total - noise, 0.0), gate_entropy=np.maximum(entropy, 0.0))

    def _target(self, y: Any) -> NDArray[Any]:
        check_is_fitted(self)
        labels = np.asarray(y)
        unknown = ~np.isin(labels, self.classes_)
        if unknown.any():
            raise UserError(
                f"expected labels of {self.classes_.tolist()}, got {labels[unknown].tolist()[0]!r}; leave such rows out"
            )
        return np.asarray(np.searchsorted(self.classes_, labels))


def sorted_labels(y: Any) -> NDArray[Any]:
    """Give the different labels in their order; raises UserError for labels of kinds that have none.

    Example:
        >>> sorted_labels(["b", "a", "b"])
        array(['a', 'b'], dtype='<U1')
    """
    try:
        return np.asarray(np.unique(y))
    except TypeError as error:
        kinds = ", ".join(sorted({type(label).__name__ for label in y}))
        raise UserError(f"expected labels of one kind, got {kinds} together; turn all of them into strings") from error
