"""The hierarchical mixture of experts for regression."""

from collections.abc import Sequence
from typing import Any, Self

from mixtura.classical.hierarchy.base import Hierarchy
from mixtura.classical.hierarchy.grow import Criterion
from mixtura.classical.predictive import Pooling
from mixtura.classical.regressor import MoERegressor


class HMERegressor(Hierarchy, MoERegressor):
    """Hierarchical mixture of experts for regression: gates in the nodes of a tree, experts in its leaves.

    `p(y | x) = sum_i g_i(x) sum_j g_ij(x) p_ij(y | x)` and so on downwards: a decision tree whose splits are soft and
    may be oblique, with a model in each leaf, fitted as a whole by EM. What a prediction can be asked for (density,
    quantiles, samples, kinds of uncertainty, the experts' own predictions) is as in `MoERegressor`.

    Args:
        depth: levels of gates; 0 is a single expert.
        branching: children of each gate, or one number for each level.
        tree: a shape instead of both: a `Tree`, or nested lists with None for leaves, as [[None, None], None].
        expert: the leaves: "linear", "ridge", "polynomial", a family, an estimator, or a list with one for each leaf.
        gate: of each node: "softmax" (algorithm 1: Newton's method, EM never steps down), "least_squares" (algorithm 2:
            regression on the log-posteriors), "polynomial", "kernel", or a gate.
        pooling: "weighted" averages the leaves, "highest" asks the most probable leaf alone.
        max_leaves: grow the tree to at most so many leaves: the leaf that gains most is split while `criterion` falls.
        prune: take gates out again while `criterion` falls.
        criterion: "bic", "aic" or "likelihood" (every gain counts).
        forgetting: what a row counts after the next one, in `partial_fit`: 1 remembers all, 0.99 about 100 rows.
        forgetting_rows: rows after which 1 - forgetting has halved, so that learning on-line settles; None: never.
        batch_size: rows between two updates in `partial_fit`.
        n_init, tol, max_iter, temperature, random_state, warm_start, verbose, n_jobs: as in `MoERegressor`; a warm
            start keeps the tree of the last fit.

    Attributes:
        tree_: the fitted tree. experts_, gate_, n_experts_, n_iter_, converged_, n_parameters_, log_likelihood_,
            objective_, history_, restart_objectives_: as in `MoERegressor`.

    Source: Jordan and Jacobs (1994), "Hierarchical mixtures of experts and the EM algorithm".

    Example:
        >>> import numpy as np
        >>> X = np.linspace(-1, 1, 400)[:, None]
        >>> y = np.abs(np.abs(X[:, 0]) - 0.5) + 0.05 * np.random.default_rng(0).normal(size=400)
        >>> model = HMERegressor(depth=2, random_state=0).fit(X, y)
        >>> model.predict([[-0.5], [0.0], [0.75]]).round(1) + 0.0
        array([0. , 0.5, 0.2])
    """

    def __init__(
        self,
        depth: int = 2,
        *,
        branching: int | Sequence[int] = 2,
        tree: Any = None,
        expert: Any = "linear",
        gate: Any = "softmax",
        pooling: Pooling = "weighted",
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

    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Learn from more rows on-line, by recursive least squares with forgetting; goes on from `fit` or from nothing.

        Rows are taken in their order, `batch_size` at a time: posteriors under the parameters so far, then one step of
        every gate and expert. Columns keep the scales of the first call. For linear experts and gates "softmax" (a
        discounted Newton step) or "least_squares" (the paper's).

        Args:
            X: (n_samples, n_features).
            y: (n_samples,) or (n_samples, n_outputs).
            sample_weight: (n_samples,), non-negative.
        """
        return self._learn(self._data(X, y, sample_weight, reset=not hasattr(self, "online_"))[0])
