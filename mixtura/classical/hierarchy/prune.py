"""Pruning: what is missed least is taken out, a whole subtree that becomes one expert or a single leaf."""

from collections.abc import Callable

import numpy as np

from mixtura.classical.columns import Array
from mixtura.classical.em import Progress, responsibilities, run
from mixtura.classical.experts.base import FittedExperts
from mixtura.classical.hierarchy.gate import TreeFitted
from mixtura.classical.hierarchy.grow import Plan, posterior, settle, tree_of
from mixtura.classical.hierarchy.settle import settled
from mixtura.classical.hierarchy.tree import Tree


def prune(plan: Plan, progress: Progress, *, report: Callable[[str], None] | None = None) -> Progress:
    """Take out what is missed least for each of its parameters, again and again, while the criterion falls.

    What can go is a gate with all below it, which one new expert replaces, or a leaf, whose sibling then moves up (of
    gates with two children).
    """
    while (tree := tree_of(progress)).inner:
        gate, experts = _parameters(progress)
        weights = posterior(plan, progress)
        collapses = collapse_losses(plan, progress, weights)
        drops = {leaf: drop(plan, progress, leaf=leaf)[0] for leaf in droppable(tree)}
        each = price(gate, experts, node=next(inner for inner in reversed(tree.inner)))
        node = min(collapses, key=lambda inner: collapses[inner])
        leaf = min(drops, key=lambda candidate: drops[candidate], default=None)
        if leaf is not None and drops[leaf] / each < collapses[node]:
            tried = settle(plan, _without(gate, leaf=leaf), drop(plan, progress, leaf=leaf)[1])
        else:
            tried = settle(plan, *_with_collapse(progress, weights, node=node))
        if not plan.cost(tried) < plan.cost(progress):
            break
        progress = tried
        if report is not None:
            report(f"pruned: {len(tree_of(progress).leaves)} leaves, objective {progress.best_objective:.8g}")
    return run(plan.task(tree_of(progress)), progress, iterations=plan.max_iter)


def droppable(tree: Tree) -> list[int]:
    """List the leaves, by the number of their expert, whose gate has two children.

    Example:
        >>> droppable(Tree.of([[None, None, None], None]))
        [3]
    """
    return [k for k, leaf in enumerate(tree.leaves) if tree.inner and len(tree.children[tree.parents[leaf]]) == 2]


def drop(plan: Plan, progress: Progress, *, leaf: int) -> tuple[float, Array]:
    """Give what the likelihood loses if a leaf goes and its sibling takes all of its gate, and the posteriors then.

    Returns:
        the loss, in nats, and posteriors times sample weights, shape (n_samples, n_leaves - 1).
    """
    gate, experts = _parameters(progress)
    tree, data = gate.tree, plan.data
    above, sibling, place = _family(tree, leaf)
    log_gate = gate.log_proba(data.X)
    density = experts.log_density(data.X, data.y)
    before = responsibilities(density + log_gate)[1]
    log_gate[:, tree.span(sibling)] -= gate.at(above).log_proba(data.X)[:, place, None]
    kept = np.delete(density + log_gate, leaf, axis=1)
    share, after = responsibilities(kept)
    return float(data.sample_weight @ (before - after)), share * data.sample_weight[:, None]


def _family(tree: Tree, leaf: int) -> tuple[int, int, int]:
    """Give the gate above a leaf, the leaf's sibling and the sibling's place."""
    node = tree.leaves[leaf]
    above = tree.parents[node]
    place = 1 - tree.children[above].index(node)
    return above, tree.children[above][place], place


def _parameters(progress: Progress) -> tuple[TreeFitted, FittedExperts]:
    assert progress.best is not None
    assert isinstance(progress.best.gate, TreeFitted)
    return progress.best.gate, progress.best.experts


def _without(gate: TreeFitted, *, leaf: int) -> TreeFitted:
    above, sibling, _ = _family(gate.tree, leaf)
    nodes = tuple(gate.at(inner) for inner in gate.tree.inner if inner != above)
    return TreeFitted(tree=gate.tree.replace(above, gate.tree.shape(sibling)), nodes=nodes)


def collapse_losses(plan: Plan, progress: Progress, weights: Array) -> dict[int, float]:
    """Give what the objective loses at most if a gate and all below it become one expert, for each parameter.

    The loss is measured on the rows by their share in the node, where the single expert is fitted to these shares.
    """
    gate, experts = _parameters(progress)
    tree, data = gate.tree, plan.data
    node_weights = tree.node_weights(weights)[:, list(tree.inner)]
    single = plan.family.bind(data, len(tree.inner), seed=plan.seed)
    alone = single.log_density(settled(single, node_weights))
    density, log_gate = experts.log_density(data.X, data.y), gate.log_proba(data.X)
    losses = {}
    for place, node in enumerate(tree.inner):
        span = tree.span(node)
        log_joint = density[:, span] + log_gate[:, span]
        log_joint -= np.logaddexp.reduce(log_gate[:, span], axis=1)[:, None]
        subtree = np.logaddexp.reduce(log_joint, axis=1)
        mass = node_weights[:, place]
        losses[node] = float(mass @ (subtree - alone[:, place])) / price(gate, experts, node=node)
    return losses


def price(gate: TreeFitted, experts: FittedExperts, *, node: int) -> float:
    """Give how many parameters go with a gate and its subtree: losses are compared for each of them."""
    tree = gate.tree
    inside = [inner for inner in tree.inner if node <= inner < tree.end(node)]
    span = tree.span(node)
    per_expert = experts.n_parameters / len(tree.leaves)
    return sum(gate.at(inner).n_parameters for inner in inside) + per_expert * (span.stop - span.start - 1)


def _with_collapse(progress: Progress, weights: Array, *, node: int) -> tuple[TreeFitted, Array]:
    gate, _ = _parameters(progress)
    span = gate.tree.span(node)
    kept = [gate.at(inner) for inner in gate.tree.inner if not node <= inner < gate.tree.end(node)]
    together = weights[:, span].sum(axis=1, keepdims=True)
    return (
        TreeFitted(tree=gate.tree.replace(node, None), nodes=tuple(kept)),
        np.hstack([weights[:, : span.start], together, weights[:, span.stop :]]),
    )
