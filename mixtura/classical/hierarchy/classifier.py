"""The hierarchical mixture of experts for classification."""

from collections.abc import Sequence
from typing import Any, Self

import numpy as np

from mixtura.classical.classifier import MoEClassifier, sorted_labels
from mixtura.classical.hierarchy.base import Hierarchy
from mixtura.classical.hierarchy.grow import Criterion
from mixtura.classical.predictive import Pooling
from mixtura.errors import UserError


class HMEClassifier(Hierarchy, MoEClassifier):
    """Hierarchical mixture of experts for classification: gates in the nodes of a tree, classifiers in its leaves.

    Args:
        depth: levels of gates; 0 is a single expert.
        branching: children of each gate, or one number for each level.
        tree: a shape instead of both: a `Tree`, or nested lists with None for leaves, as [[None, None], None].
        expert: the leaves: "logistic", a family such as `LogisticExpert(ridge=0.1)`, any classifier with
            `predict_proba`, or a list with one for each leaf.
        gate, max_leaves, prune, criterion, forgetting, forgetting_rows, batch_size: as in `HMERegressor`.
        pooling: "weighted", "highest" or "vote", as in `MoEClassifier`.
        class_weight: None, "balanced" or a dictionary {label: weight}, multiplied into the sample weights.
        n_init, tol, max_iter, temperature, random_state, warm_start, verbose, n_jobs: as in `MoERegressor`; a warm
            start keeps the tree of the last fit.

    Attributes:
        classes_: the labels, sorted. tree_: the fitted tree. The others are those of `MoERegressor`.

    Source: Jordan and Jacobs (1994), "Hierarchical mixtures of experts and the EM algorithm".

    Example:
        >>> from sklearn.datasets import load_iris
        >>> X, y = load_iris(return_X_y=True)
        >>> HMEClassifier(depth=2, n_init=1, tol=1e-4, random_state=0).fit(X, y).score(X, y) > 0.95
        True
    """

    def __init__(
        self,
        depth: int = 2,
        *,
        branching: int | Sequence[int] = 2,
        tree: Any = None,
        expert: Any = "logistic",
        gate: Any = "softmax",
        pooling: Pooling = "weighted",
        class_weight: Any = None,
        max_leaves: int | None = None,
        prune: bool = False,
        criterion: Criterion = "bic",
        forgetting: float = 0.99,
        forgetting_rows: float | None = 5000.0,
        batch_size: int = 100,
        n_init: int = 5,
        tol: float = 1e-6,
        max_iter: int = 500,
        temperature: float = 1.0,
        random_state: Any = None,
        warm_start: bool = False,
        verbose: int = 0,
        n_jobs: int | None = None,
    ) -> None:
        self.depth = depth
        self.branching = branching
        self.tree = tree
        self.expert = expert
        self.gate = gate
        self.pooling = pooling
        self.class_weight = class_weight
        self.max_leaves = max_leaves
        self.prune = prune
        self.criterion = criterion
        self.forgetting = forgetting
        self.forgetting_rows = forgetting_rows
        self.batch_size = batch_size
        self.n_init = n_init
        self.tol = tol
        self.max_iter = max_iter
        self.temperature = temperature
        self.random_state = random_state
        self.warm_start = warm_start
        self.verbose = verbose
        self.n_jobs = n_jobs

    def partial_fit(self, X: Any, y: Any, classes: Any = None, *, sample_weight: Any = None) -> Self:
        """Learn from more rows on-line, by discounted Newton steps; goes on from `fit` or from nothing.

        Args:
            X: (n_samples, n_features).
            y: (n_samples,) labels.
            classes: all labels that will ever come; needed in the first call, unless `fit` came before.
            sample_weight: (n_samples,), non-negative.
        """
        if self.class_weight == "balanced":
            raise UserError("expected class_weight None or a dictionary for partial_fit, got 'balanced'; pass weights")
        first = not hasattr(self, "online_")
        if first:
            if classes is None:
                raise UserError("expected classes in the first call of partial_fit, got None; pass all labels")
            self.classes_ = sorted_labels(classes)
        elif classes is not None and not np.array_equal(np.unique(classes), self.classes_):
            raise UserError(f"expected classes {self.classes_.tolist()} as before, got {classes!r}; leave them out")
        return self._learn(self._data(X, y, sample_weight, reset=first, known=True)[0])
