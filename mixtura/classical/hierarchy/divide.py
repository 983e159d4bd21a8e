"""The first division of the rows among the leaves of a tree: divided at the root, then within each part."""

from dataclasses import replace

import numpy as np

from mixtura.classical.columns import Array
from mixtura.classical.data import Data
from mixtura.classical.gates.base import Gate
from mixtura.classical.hierarchy.tree import Tree


def divide(data: Data, tree: Tree, *, gate: Gate, restart: int, seed: int) -> Array:
    """Give the division that a restart begins with, shape (n_samples, n_leaves), rows sum to one.

    Each node's gate divides the rows that mostly come down to it as it would for a flat mixture; what little comes
    down to it of other rows goes to its children in equal parts. A node with fewer rows than children divides evenly.

    Example:
        >>> from mixtura.classical import SoftmaxGate
        >>> data = Data(X=np.array([[0.0], [1.0], [8.0], [9.0]]), y=np.zeros((4, 1)), sample_weight=np.ones(4))
        >>> sorted(divide(data, Tree.uniform(2, 2), gate=SoftmaxGate(), restart=0, seed=0).argmax(axis=1).tolist())
        [0, 1, 2, 3]
    """
    shares = np.ones((data.n_samples, len(tree.children)))
    rows_of = {0: np.arange(data.n_samples)}
    seeds = np.random.default_rng(seed).integers(np.iinfo(np.int32).max, size=len(tree.children))
    for node in tree.inner:
        below, rows = list(tree.children[node]), rows_of[node]
        division = np.full((data.n_samples, len(below)), 1.0 / len(below))
        if len(rows) >= len(below):
            part = replace(data, X=data.X[rows], y=data.y[rows], sample_weight=data.sample_weight[rows])
            division[rows] = gate.divide(part, len(below), restart=restart, seed=int(seeds[node]))
        favourite = division[rows].argmax(axis=1)
        rows_of |= {child: rows[favourite == place] for place, child in enumerate(below)}
        shares[:, below] = shares[:, [node]] * division
    return shares[:, list(tree.leaves)]
