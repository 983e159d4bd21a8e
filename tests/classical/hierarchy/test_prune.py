"""Pruning takes out what the data have not: subtrees and single leaves, by losses that are true."""

import numpy as np
import pytest

from mixtura.classical.em import responsibilities
from mixtura.classical.hierarchy.grow import posterior, tree_of
from mixtura.classical.hierarchy.prune import collapse_losses, drop, droppable, prune
from mixtura.classical.hierarchy.tree import Tree
from tests.classical.hierarchy.samples import fitted_tree, four_lines, plan_for


def test_six_leaves_are_pruned_to_four():
    X, y = four_lines(500)
    plan = plan_for(X, y)
    full = fitted_tree(plan, Tree.of([[[None, None], None], [[None, None], None]]))
    pruned = prune(plan, full)
    assert len(tree_of(pruned).leaves) == 4
    assert plan.cost(pruned) < plan.cost(full)


def test_the_gate_that_matters_least_costs_least():
    X, y = four_lines(400)
    plan = plan_for(X, y)
    fitted = fitted_tree(plan, Tree.uniform(2, 2))
    losses = collapse_losses(plan, fitted, posterior(plan, fitted))
    assert set(losses) == {0, 1, 4}
    assert min(losses.values()) > 10


def test_a_dropped_leaf_leaves_its_gate_to_its_sibling():
    X, y = four_lines(200)
    plan = plan_for(X, y)
    fitted = fitted_tree(plan, Tree.of([[None, None], None]))
    loss, weights = drop(plan, fitted, leaf=0)
    gate, experts = fitted.best.gate, fitted.best.experts
    density = experts.log_density(X, y[:, None])
    left = gate.at(0).log_proba(X)[:, :1]
    kept = np.c_[density[:, 1:2] + left, density[:, 2:] + gate.at(0).log_proba(X)[:, 1:]]
    share, after = responsibilities(kept)
    before = responsibilities(density + gate.log_proba(X))[1]
    assert loss == pytest.approx((before - after).sum())
    np.testing.assert_allclose(weights, share, atol=1e-12)


def test_only_gates_of_two_lose_a_leaf():
    assert droppable(Tree.of([[None, None, None], [None, None]])) == [3, 4]
    assert droppable(Tree.of(None)) == []


def test_a_chain_with_a_leaf_too_many_is_pruned_to_four():
    X, y = four_lines(400)
    plan = plan_for(X, y)
    chain = fitted_tree(plan, Tree.of([[[[None, None], None], None], None]))
    assert len(tree_of(prune(plan, chain)).leaves) == 4
