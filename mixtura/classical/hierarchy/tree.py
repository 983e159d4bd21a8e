"""The shape of a tree of gates: which node has which children, and which experts lie below it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mixtura.classical.checks import check_whole
from mixtura.classical.columns import Array
from mixtura.errors import UserError


@dataclass(frozen=True)
class Tree:
    """A tree whose inner nodes are gates and whose leaves are experts.

    `children[v]` lists the children of node v; nodes are numbered in preorder, so the root is 0, and experts from left
    to right, so that the experts below a node are neighbours.

    Example:
        >>> tree = Tree.of([[None, None], None])
        >>> tree.children, tree.leaves, tree.span(1)
        (((1, 4), (2, 3), (), (), ()), (2, 3, 4), slice(0, 2, None))
    """

    children: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, shape: Any) -> "Tree":
        """Make a tree from nested sequences: None is a leaf, a sequence is a node with these children."""
        children: list[tuple[int, ...]] = []
        _number(shape, children)
        return cls(tuple(children))

    @classmethod
    def uniform(cls, depth: int, branching: int | Sequence[int]) -> "Tree":
        """Make the tree in which every node above `depth` has `branching` children, or one number for each level."""
        check_whole("depth", depth, 0)
        levels = [branching] * depth if isinstance(branching, int | np.integer) else list(branching)
        if len(levels) != depth:
            raise UserError(
                f"expected one branching for each of depth = {depth} levels, got {branching!r}; pass {depth} numbers"
            )
        shape: Any = None
        for count in reversed(levels):
            check_whole("branching", count, 2)
            shape = (shape,) * count
        return cls.of(shape)

    @property
    def leaves(self) -> tuple[int, ...]:
        """The nodes that are experts, from left to right: expert k is node `leaves[k]`."""
        return tuple(node for node, below in enumerate(self.children) if not below)

    @property
    def inner(self) -> tuple[int, ...]:
        """The nodes that are gates, in preorder."""
        return tuple(node for node, below in enumerate(self.children) if below)

    @property
    def depths(self) -> tuple[int, ...]:
        """How far below the root each node lies."""
        depths = [0] * len(self.children)
        for node, below in enumerate(self.children):
            for child in below:
                depths[child] = depths[node] + 1
        return tuple(depths)

    @property
    def parents(self) -> tuple[int, ...]:
        """The parent of each node; -1 for the root."""
        parents = [-1] * len(self.children)
        for node, below in enumerate(self.children):
            for child in below:
                parents[child] = node
        return tuple(parents)

    def end(self, node: int) -> int:
        """Give the number after the last node of the subtree at `node`."""
        while self.children[node]:
            node = self.children[node][-1]
        return node + 1

    def span(self, node: int) -> slice:
        """Give the experts below a node, as a slice of the experts' columns."""
        start = sum(not below for below in self.children[:node])
        return slice(start, start + sum(not below for below in self.children[node : self.end(node)]))

    def shape(self, node: int = 0) -> Any:
        """Give the subtree at a node as nested tuples; undoes `of`."""
        below = self.children[node]
        return tuple(self.shape(child) for child in below) if below else None

    def replace(self, node: int, shape: Any) -> "Tree":
        """Put another subtree, given as nested sequences, in the place of a node.

        Example:
            >>> Tree.uniform(1, 2).replace(2, (None, None)).shape()
            (None, (None, None))
        """
        return Tree.of(self._replaced(0, node, shape))

    def _replaced(self, at: int, node: int, shape: Any) -> Any:
        if at == node:
            return shape
        below = self.children[at]
        return tuple(self._replaced(child, node, shape) for child in below) if below else None

    def node_weights(self, weights: Array) -> Array:
        """Sum experts' columns (n_samples, n_experts) to those of all nodes (n_samples, n_nodes).

        Example:
            >>> Tree.uniform(1, 2).node_weights(np.array([[0.25, 0.5]]))
            array([[0.75, 0.25, 0.5 ]])
        """
        return np.stack([weights[:, self.span(node)].sum(axis=1) for node in range(len(self.children))], axis=1)


def _number(shape: Any, children: list[tuple[int, ...]]) -> int:
    node = len(children)
    children.append(())
    if shape is None:
        return node
    if isinstance(shape, str) or not isinstance(shape, Sequence) or len(shape) < 2:
        raise UserError(
            f"expected a tree of nested sequences of at least two parts with None for leaves, got {shape!r}; "
            "write for example [[None, None], None]"
        )
    children[node] = tuple(_number(part, children) for part in shape)
    return node


def path(tree: Tree, node: int) -> Iterator[tuple[int, int]]:
    """Give the way from the root to a node: pairs (gate, which of its children).

    Example:
        >>> list(path(Tree.uniform(2, 2), 6))
        [(0, 1), (4, 1)]
    """
    steps: list[tuple[int, int]] = []
    parents = tree.parents
    while parents[node] >= 0:
        steps.append((parents[node], tree.children[parents[node]].index(node)))
        node = parents[node]
    return reversed(steps)
