"""Growing: the leaf that gains most is split.

A leaf that becomes a mixture of two, fitted to the rows by the leaf's share of them, raises the likelihood of the whole
tree by at least its gain on these weighted rows: EM's own argument. So candidates are fitted alone, and only the best
one is tried in the whole tree. Source: Waterhouse and Robinson, "Constructive algorithms for hierarchical mixtures of
experts" (1996).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from mixtura.classical.columns import Array
from mixtura.classical.data import Data
from mixtura.classical.em import Parameters, Progress, Task, responsibilities, run, start
from mixtura.classical.experts.base import ExpertFamily
from mixtura.classical.gates.base import FittedGate, Gate
from mixtura.classical.hierarchy.gate import TreeFitted, TreeGate
from mixtura.classical.hierarchy.settle import settled
from mixtura.classical.hierarchy.tree import Tree

Criterion = Literal["bic", "aic", "likelihood"]

# Rows whose share in a leaf is smaller take no part in fitting its split.
SMALLEST_SHARE = 1e-6
LOCAL_ITERATIONS = 15
WHOLE_ITERATIONS = 30


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What stays the same while the tree changes: data, the kinds of gate and expert, and when EM stops."""

    data: Data
    family: ExpertFamily
    node: Gate
    tol: float
    max_iter: int
    seed: int
    criterion: Criterion = "bic"

    def task(self, tree: Tree) -> Task:
        """Give EM's task for a tree."""
        return self._task(self.data, TreeGate(tree, node=self.node), len(tree.leaves))

    def local(self, data: Data) -> Task:
        """Give EM's task for two experts on a part of the data."""
        return replace(self._task(data, self.node, 2), max_iter=LOCAL_ITERATIONS)

    def _task(self, data: Data, gate: Gate, n_experts: int) -> Task:
        return Task(
            gate=gate.bind(data, n_experts, seed=self.seed),
            experts=self.family.bind(data, n_experts, seed=self.seed),
            sample_weight=data.sample_weight,
            n_experts=n_experts,
            tol=self.tol,
            max_iter=self.max_iter,
            reseed=False,
        )

    def cost(self, progress: Progress) -> float:
        """Give minus twice the objective plus the criterion's price of the parameters; lower is better."""
        assert progress.best is not None
        n_parameters = progress.best.gate.n_parameters + progress.best.experts.n_parameters
        price = {"bic": float(np.log(self.data.total)), "aic": 2.0, "likelihood": 0.0}[self.criterion]
        return price * n_parameters - 2.0 * progress.best_objective


@dataclass(frozen=True, kw_only=True)
class Split:
    """A leaf's best division in two: the gain in the objective at least, the gate, and each row's shares (n, 2)."""

    gain: float
    gate: FittedGate
    shares: Array


def grow(plan: Plan, progress: Progress, *, max_leaves: int, report: Callable[[str], None] | None = None) -> Progress:
    """Split the leaf that gains most, again and again; of all trees on the way the one of lowest criterion is kept.

    A split that does not pay alone may open the way to some that do, so growing goes on to `max_leaves`. Ends with EM
    on the whole tree. The tree is that of the progress's gate.
    """
    grown = progress
    while (n_leaves := len(tree_of(grown).leaves)) < max_leaves:
        weights = posterior(plan, grown)
        splits = [split_leaf(plan, grown, weights, leaf=leaf) for leaf in range(n_leaves)]
        leaf = int(np.argmax([-np.inf if split is None else split.gain for split in splits]))
        split = splits[leaf]
        if split is None:
            break
        grown = settle(plan, *_with_split(grown, weights, leaf=leaf, split=split))
        if report is not None:
            report(f"leaf {leaf} split: {n_leaves + 1} leaves, objective {grown.best_objective:.8g}")
        if plan.cost(grown) < plan.cost(progress):
            progress = grown
    return run(plan.task(tree_of(progress)), progress, iterations=plan.max_iter)


def tree_of(progress: Progress) -> Tree:
    """Give the tree of the gate that a run has come to."""
    assert progress.best is not None
    assert isinstance(progress.best.gate, TreeFitted)
    return progress.best.gate.tree


def split_leaf(plan: Plan, progress: Progress, weights: Array, *, leaf: int) -> Split | None:
    """Fit a mixture of two to a leaf's share of the rows; None where too few rows are left to divide."""
    rows = np.flatnonzero(weights[:, leaf] > SMALLEST_SHARE * plan.data.sample_weight)
    data = replace(plan.data, X=plan.data.X[rows], y=plan.data.y[rows], sample_weight=weights[rows, leaf])
    if data.n_samples < 2 or not np.ptp(data.X, axis=0).any():
        return None
    assert progress.best is not None
    one = plan.family.bind(data, 1, seed=plan.seed)
    alone = one.fit(data.sample_weight[:, None], None)
    before = max(
        float(data.sample_weight @ progress.best.experts.log_density(data.X, data.y)[:, leaf]),
        float(data.sample_weight @ one.log_density(alone)[:, 0]) - alone.penalty,
    )
    task = plan.local(data)
    found = max((_attempt(plan, task, data, restart) for restart in range(2)), key=lambda p: p.best_objective)
    assert found.best is not None
    log_joint = found.best.experts.log_density(data.X, data.y) + found.best.gate.log_proba(data.X)
    shares = np.full((plan.data.n_samples, 2), 0.5)
    shares[rows] = responsibilities(log_joint)[0]
    return Split(gain=found.best_objective - before, gate=found.best.gate, shares=shares)


def _attempt(plan: Plan, task: Task, data: Data, restart: int) -> Progress:
    shares = plan.node.divide(data, 2, restart=restart, seed=plan.seed)
    return run(task, start(data, shares), iterations=task.max_iter)


def posterior(plan: Plan, progress: Progress) -> Array:
    """Give the posterior probability of each leaf times the sample weights, shape (n_samples, n_leaves)."""
    assert progress.best is not None
    log_joint = progress.best.experts.log_density(plan.data.X, plan.data.y)
    log_joint += progress.best.gate.log_proba(plan.data.X)
    return responsibilities(log_joint)[0] * plan.data.sample_weight[:, None]


def _with_split(progress: Progress, weights: Array, *, leaf: int, split: Split) -> tuple[TreeFitted, Array]:
    assert progress.best is not None
    assert isinstance(progress.best.gate, TreeFitted)
    gate = progress.best.gate
    node = gate.tree.leaves[leaf]
    place = sum(inner < node for inner in gate.tree.inner)
    nodes = (*gate.nodes[:place], split.gate, *gate.nodes[place:])
    divided = weights[:, [leaf]] * split.shares
    return (
        TreeFitted(tree=gate.tree.replace(node, (None, None)), nodes=nodes),
        np.hstack([weights[:, :leaf], divided, weights[:, leaf + 1 :]]),
    )


def settle(plan: Plan, gate: TreeFitted, weights: Array) -> Progress:
    """Run EM in the changed tree for some iterations, from the changed division."""
    task = plan.task(gate.tree)
    weights = np.asfortranarray(weights)
    experts = settled(task.experts, weights)
    begun = Progress(weights=weights, current=Parameters(gate=gate, experts=experts))
    return run(task, begun, iterations=WHOLE_ITERATIONS)
