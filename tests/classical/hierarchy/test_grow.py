"""Growing finds the leaves that the data have, pruning takes out those that they have not."""

import numpy as np
import pytest

from mixtura.classical import HMERegressor
from mixtura.classical.em import Progress
from mixtura.classical.hierarchy.grow import grow, split_leaf, tree_of
from mixtura.classical.hierarchy.tree import Tree
from mixtura.errors import UserError
from tests.classical.hierarchy.samples import fitted_tree, four_lines, plan_for


def test_a_single_leaf_grows_to_the_four_lines_and_no_further():
    X, y = four_lines()
    plan = plan_for(X, y)
    grown = grow(plan, fitted_tree(plan, Tree.of(None)), max_leaves=6)
    assert len(tree_of(grown).leaves) == 4
    np.testing.assert_allclose(np.sort(grown.best.experts.coef[:, 0, 0]), [-1, -1, 1, 1], atol=0.1)
    assert grown.converged


def test_more_leaves_are_kept_if_every_gain_counts():
    X, y = four_lines(300)
    plan = plan_for(X, y, criterion="likelihood")
    messages = []
    grown = grow(plan, fitted_tree(plan, Tree.of(None)), max_leaves=5, report=messages.append)
    assert len(tree_of(grown).leaves) == 5
    assert [message.split(":")[1].split(",")[0] for message in messages] == [f" {k} leaves" for k in (2, 3, 4, 5)]


def test_the_local_gain_is_a_lower_bound_of_the_whole_gain():
    X, y = four_lines(400)
    plan = plan_for(X, y)
    one = fitted_tree(plan, Tree.uniform(1, 2))
    share = np.exp(one.best.experts.log_density(X, y[:, None]) + one.best.gate.log_proba(X))
    weights = share / share.sum(axis=1, keepdims=True)
    split = split_leaf(plan, one, weights, leaf=0)
    grown = grow(plan, one, max_leaves=3)
    assert split.gain > 0
    assert grown.best_objective >= one.best_objective + split.gain - 1e-6 * abs(one.best_objective)


def test_leaves_without_rows_to_divide_are_not_split():
    X, y = np.ones((5, 1)), np.arange(5.0)
    plan = plan_for(X, y)
    one = fitted_tree(plan, Tree.of(None))
    assert isinstance(one, Progress)
    assert split_leaf(plan, one, np.ones((5, 1)), leaf=0) is None
    assert len(tree_of(grow(plan, one, max_leaves=4)).leaves) == 1


def test_the_estimator_grows_and_prunes():
    X, y = four_lines(300)
    grown = HMERegressor(depth=0, max_leaves=5, prune=True, random_state=0).fit(X, y)
    pruned = HMERegressor(tree=[[[None, None], None], [None, None]], prune=True, n_init=1, random_state=0).fit(X, y)
    assert grown.n_experts_ == len(grown.tree_.leaves) == 4
    assert pruned.n_experts_ == len(pruned.tree_.leaves) == 4
    with pytest.raises(UserError, match="one kind of expert"):
        HMERegressor(depth=1, expert=["linear", "ridge"], max_leaves=4).fit(X, y)
