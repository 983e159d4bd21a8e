"""A tree of gates as one gate over its leaves: EM over a hierarchy is EM with this gate.

The posterior of a node is the sum of the posteriors of the experts below it, so the M-step of each node's gate is that
of a flat gate whose targets are these sums: h_i at the root, h_ij below (Jordan and Jacobs 1994, equations 13 to 20).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mixtura.classical.columns import Array
from mixtura.classical.data import Data
from mixtura.classical.gates.base import FittedGate, Gate, GateTrainer
from mixtura.classical.gates.softmax import SoftmaxGate
from mixtura.classical.hierarchy.divide import divide
from mixtura.classical.hierarchy.tree import Tree
from mixtura.errors import UserError


@dataclass(frozen=True, kw_only=True)
class TreeFitted(FittedGate):
    """The fitted gates of a tree, in the order of `tree.inner`.

    Example:
        >>> TreeFitted(tree=Tree.of(None), nodes=()).log_proba(np.ones((2, 1)))
        array([[0.],
               [0.]])
    """

    tree: Tree
    nodes: tuple[FittedGate, ...]

    @property
    def n_parameters(self) -> int:  # type: ignore[override]  # a value computed from another field, read-only
        """The sum over the nodes."""
        return sum(node.n_parameters for node in self.nodes)

    @property
    def penalty(self) -> float:  # type: ignore[override]  # a value computed from another field, read-only
        """The sum over the nodes."""
        return float(sum(node.penalty for node in self.nodes))

    def at(self, node: int) -> FittedGate:
        """Give the gate of an inner node, by the node's number."""
        return self.nodes[self.tree.inner.index(node)]

    def log_proba(self, X: Array) -> Array:
        """Give the log-probability of every expert: the sum along its path, shape (n_samples, n_experts)."""
        return along_paths(self.tree, len(X), lambda node: self.at(node).log_proba(X))


def along_paths(tree: Tree, n_samples: int, log_proba: Callable[[int], Array]) -> Array:
    """Add the log-probabilities (n_samples, n_children) of every inner node to the experts below each child.

    Example:
        >>> np.exp(along_paths(Tree.of([[None, None], None]), 1, lambda node: np.log([[0.5, 0.5]])))
        array([[0.25, 0.25, 0.5 ]])
    """
    total = np.zeros((n_samples, len(tree.leaves)), order="F")
    for node in tree.inner:
        log_share = log_proba(node)
        for place, child in enumerate(tree.children[node]):
            total[:, tree.span(child)] += log_share[:, place, None]
    return total


class TreeGate(Gate):
    """Gates in the inner nodes of a tree, experts in its leaves.

    Args:
        tree: the shape; experts are numbered from left to right.
        node: the gate of each node; its probabilities must be conditional on X, as those of `SoftmaxGate` are.

    Source: Jordan and Jacobs (1994), section 2.

    Example:
        >>> from mixtura.classical import MoERegressor
        >>> X = np.linspace(-1, 1, 200)[:, None]
        >>> y = np.abs(np.abs(X[:, 0]) - 0.5) + 0.05 * np.random.default_rng(0).normal(size=200)
        >>> model = MoERegressor(4, gate=TreeGate(Tree.uniform(2, 2)), random_state=0).fit(X, y)
        >>> model.gate_proba([[0.1]]).sum().round(6)
        np.float64(1.0)
    """

    def __init__(self, tree: Tree, *, node: Gate | None = None) -> None:
        self.tree = tree
        self.node = node

    def divide(self, data: Data, n_experts: int, *, restart: int, seed: int) -> Array:  # noqa: ARG002  the tree knows it
        """Divide the rows at the root, then within each part."""
        return divide(data, self.tree, gate=self.node_gate, restart=restart, seed=seed)

    @property
    def node_gate(self) -> Gate:
        """The gate of each node."""
        return SoftmaxGate() if self.node is None else self.node

    def bind(self, data: Data, n_experts: int, *, seed: int = 0) -> "TreeTrainer":
        """Bind one trainer for each number of children; nodes of equal width share it, and so its features."""
        if n_experts != len(self.tree.leaves):
            raise UserError(
                f"expected n_experts = {len(self.tree.leaves)}, the leaves of the tree, got {n_experts}; pass as many"
            )
        widths = {len(below) for below in self.tree.children if below}
        return TreeTrainer(
            self.tree, {width: self.node_gate.bind(data, width, seed=seed) for width in widths}, len(data.X)
        )


class TreeTrainer(GateTrainer):
    """A tree of gates bound to data."""

    def __init__(self, tree: Tree, trainers: dict[int, GateTrainer], n_samples: int) -> None:
        self.tree, self.trainers, self.n_samples = tree, trainers, n_samples
        self.monotone = all(trainer.monotone for trainer in trainers.values())

    def fit(self, weights: Array, previous: FittedGate | None) -> TreeFitted:
        """Fit every node's gate to the summed responsibilities of its children."""
        before = dict(zip(self.tree.inner, previous.nodes, strict=True)) if isinstance(previous, TreeFitted) else {}
        fitted = []
        for node in self.tree.inner:
            below = self.tree.children[node]
            targets = np.array([weights[:, self.tree.span(child)].sum(axis=1) for child in below]).T
            fitted.append(self.trainers[len(below)].fit(targets, before.get(node)))
        return TreeFitted(tree=self.tree, nodes=tuple(fitted))

    def log_score(self, gate: FittedGate) -> Array:
        """Give the log-probabilities of the experts at the training rows."""
        assert isinstance(gate, TreeFitted)
        return along_paths(
            self.tree,
            self.n_samples,
            lambda node: self.trainers[len(self.tree.children[node])].log_score(gate.at(node)),
        )
