"""What the hierarchical regressor and classifier share: the tree, its growth, on-line learning, looking inside."""

from dataclasses import replace
from typing import Any, Literal, Self

import numpy as np
from sklearn.base import is_classifier
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from mixtura.classical.checks import check_at_least, check_choice, check_truth, check_whole
from mixtura.classical.data import Data
from mixtura.classical.em import Progress
from mixtura.classical.experts.base import ExpertFamily
from mixtura.classical.experts.choose import choose_experts
from mixtura.classical.gates.base import Gate
from mixtura.classical.gates.choose import choose_gate
from mixtura.classical.gates.gaussian import GaussianGate
from mixtura.classical.gates.log_posterior import LogPosteriorGate
from mixtura.classical.hierarchy.describe import Measures, SoftTree, describe, measure
from mixtura.classical.hierarchy.gate import TreeFitted, TreeGate
from mixtura.classical.hierarchy.grow import Plan, grow
from mixtura.classical.hierarchy.online import Online, begin, learns_online, resume
from mixtura.classical.hierarchy.prune import prune
from mixtura.classical.hierarchy.tree import Tree
from mixtura.classical.mixture import Mixture
from mixtura.classical.progress import say
from mixtura.errors import UserError

CRITERIA = ("bic", "aic", "likelihood")
# Rows that the first division of on-line learning is made of.
ROWS_PER_LEAF = 10


class Hierarchy(Mixture):
    """A mixture whose gate is a tree; subclasses are regressors or classifiers too."""

    division = None
    # An empty leaf of a tree is no defect: it stays empty, and pruning takes it out.
    _reseeds = False
    gate_: TreeFitted
    online_: Online | None

    @property
    def tree_(self) -> Tree:
        """The tree that was fitted: as given, or as it grew and was pruned."""
        if not hasattr(self, "gate_"):
            raise AttributeError(f"{type(self).__name__} has no tree_ before fit")
        return self.gate_.tree

    def _experts(self) -> tuple[ExpertFamily, int]:
        task = "classification" if is_classifier(self) else "regression"
        return choose_experts(self.expert, len(self._tree().leaves), task=task)

    def _tree(self) -> Tree:
        if self.warm_start and hasattr(self, "gate_"):
            return self.tree_
        if self.tree is not None:
            return self.tree if isinstance(self.tree, Tree) else Tree.of(self.tree)
        return Tree.uniform(self.depth, self.branching)

    def _node_gate(self) -> Gate:
        if isinstance(self.gate, str) and self.gate == "least_squares":
            return LogPosteriorGate()
        gate = choose_gate(self.gate)
        if gate.fixed or isinstance(gate, GaussianGate):
            raise UserError(
                f"expected a gate with probabilities given X in every node, got {self.gate!r}; choose 'softmax', "
                "'polynomial', 'kernel', 'least_squares' or a classifier"
            )
        return gate

    def _learn(self, data: Data) -> Self:
        """Learn from more rows, block by block; the first ones of an unfitted model give its first division."""
        check_online(self)
        online: Online | None = getattr(self, "online_", None)
        family, node = self._experts()[0], self._node_gate()
        begun = 0
        if online is not None:
            self._check_as_before(data)
        else:
            if not learns_online(family, node):
                raise UserError(
                    f"expected linear or logistic experts and softmax or least-squares gates for partial_fit, got "
                    f"expert={self.expert!r} and gate={self.gate!r}; use fit for the others"
                )
            begun = min(data.n_samples, max(self.batch_size, ROWS_PER_LEAF * len(self._tree().leaves)))
            seed = int(check_random_state(self.random_state).randint(2**31 - 1))
            online = begin(part(data, slice(0, begun)), self._tree(), family=family, node=node, seed=seed)
        for first in range(begun, data.n_samples, self.batch_size):
            block = part(data, slice(first, first + self.batch_size))
            weights = online.posterior(block.X, block.y) * block.sample_weight[:, None]
            log_forgetting = forgetting_at(online.rows, start=self.forgetting, halving=self.forgetting_rows)
            online = online.step(block, weights, log_forgetting=log_forgetting)
        self.online_, self.gate_, self.experts_ = online, online.gate, online.fitted
        self.n_experts_ = self.experts_.n_experts
        self.n_parameters_ = self.gate_.n_parameters + self.experts_.n_parameters
        self._form = data.form
        return self

    def _gate(self) -> Gate:
        return TreeGate(self._tree(), node=self._node_gate())

    def _refine(self, best: Progress, data: Data, *, family: ExpertFamily, seed: int) -> Progress:
        check_online(self)
        check_choice("criterion", self.criterion, CRITERIA)
        check_truth("prune", self.prune)
        node = self._node_gate()
        best = self._reshape(best, data, family=family, node=node, seed=seed)
        assert best.best is not None
        self.online_ = None
        if learns_online(family, node):
            assert isinstance(best.best.gate, TreeFitted)
            self.online_ = resume(data, best.best.gate, best.best.experts, family=family, node=node)
        return best

    def _reshape(self, best: Progress, data: Data, *, family: ExpertFamily, node: Gate, seed: int) -> Progress:
        if self.max_leaves is None and not self.prune:
            return best
        if isinstance(self.expert, list | tuple):
            raise UserError("expected one kind of expert for a tree that changes, got a list; pass one family")
        plan = Plan(
            data=data,
            family=family,
            node=node,
            tol=self.tol,
            max_iter=self.max_iter,
            seed=seed,
            criterion=self.criterion,
        )
        report = say if self.verbose else None
        if self.max_leaves is not None:
            check_whole("max_leaves", self.max_leaves, 1)
            if self.max_leaves < (n_leaves := len(self._tree().leaves)):
                raise UserError(
                    f"expected max_leaves of at least the {n_leaves} leaves so far, got {self.max_leaves}; lower depth"
                )
            best = grow(plan, best, max_leaves=self.max_leaves, report=report)
        return prune(plan, best, report=report) if self.prune else best

    def to_tree(self, X: Any = None, y: Any = None, *, max_terms: int = 4) -> SoftTree:
        """Give the fitted tree as a value: each node with its gate or expert in words.

        Args:
            X: rows at which each node's share and its histogram are measured; None for the shape and words alone.
            y: their targets; with them shares are posterior probabilities, and deviances are measured.
            max_terms: how many columns a linear function names, largest coefficients first.
        """
        check_is_fitted(self)
        measures = None
        if X is not None:
            checked = self._checked(X)
            weight = np.ones(len(checked))
            if y is None:
                reach = self.tree_.node_weights(np.exp(self.gate_.log_proba(checked)))
                measures = Measures(reach=reach, sample_weight=weight)
            else:
                classes = getattr(self, "classes_", np.array([]))
                data = Data(X=checked, y=self._target(y), sample_weight=weight, classes=classes)
                # Experts of different kinds have no kind of their own for the nodes above them.
                family = None if isinstance(self.expert, list | tuple) else self._experts()[0]
                measures = measure(data, self.gate_, self.experts_, family=family)
        names = [str(name) for name in getattr(self, "feature_names_in_", [])]
        names = names or [f"x{column}" for column in range(self.n_features_in_)]
        return describe(self.gate_, self.experts_, names=names, measures=measures, max_terms=max_terms)

    def export_text(self, X: Any = None, y: Any = None, *, max_terms: int = 4) -> str:
        """Give the fitted tree as indented text; see `to_tree`."""
        return self.to_tree(X, y, max_terms=max_terms).text()

    def plot_tree(
        self, X: Any, y: Any, *, kind: Literal["histogram", "deviance"] = "histogram", axes: Any = None
    ) -> Any:
        """Draw the histogram tree or the deviance tree with matplotlib and give the Axes; see `plot.plot_tree`."""
        from mixtura.classical.hierarchy.plot import plot_tree

        return plot_tree(self.to_tree(X, y), kind=kind, axes=axes)


def part(data: Data, rows: slice) -> Data:
    """Give some rows of the data."""
    return replace(data, X=data.X[rows], y=data.y[rows], sample_weight=data.sample_weight[rows])


def forgetting_at(rows: float, *, start: float, halving: float | None) -> float:
    """Give the logarithm of what a row counts after the next one, when `rows` were seen.

    Example:
        >>> np.exp([forgetting_at(0, start=0.99, halving=1000), forgetting_at(1000, start=0.99, halving=1000)]).round(4)
        array([0.99 , 0.995])
    """
    return float(np.log1p(-(1.0 - start) * (1.0 if halving is None else 0.5 ** (rows / halving))))


def check_online(model: Any) -> None:
    """Refuse settings of on-line learning that cannot work, one line each."""
    check_whole("batch_size", model.batch_size, 1)
    check_at_least("forgetting", model.forgetting, 0)
    if not 0 < model.forgetting <= 1:
        raise UserError(f"expected forgetting above 0 and at most 1, got {model.forgetting!r}; pass for example 0.99")
    if model.forgetting_rows is not None and not model.forgetting_rows > 0:
        raise UserError(f"expected forgetting_rows above 0 or None, got {model.forgetting_rows!r}; pass 1000 or None")
