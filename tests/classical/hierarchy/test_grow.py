"""Growing finds the leaves that the data have, pruning takes out those that they have not."""

import numpy as np
import pytest

from mixtura.classical import HMERegressor
from mixtura.classical.data import Data
from mixtura.classical.em import Progress, run, start
from mixtura.classical.experts.gaussian import LinearExpert
from mixtura.classical.gates.softmax import SoftmaxGate
from mixtura.classical.hierarchy.divide import divide
from mixtura.classical.hierarchy.grow import Plan, collapse_losses, grow, prune, split_leaf, tree_of
from mixtura.classical.hierarchy.tree import Tree
from mixtura.errors import UserError
from tests.classical.hierarchy.samples import four_lines


def _plan(X, y, **settings):
    data = Data(X=X, y=y[:, None], sample_weight=np.ones(len(X)))
    return Plan(data=data, family=LinearExpert(), node=SoftmaxGate(), tol=1e-6, max_iter=200, seed=0, **settings)


def _fitted(plan, tree):
    begun = start(plan.data, divide(plan.data, tree, restart=0, seed=0))
    return run(plan.task(tree), begun, iterations=200)


def test_a_single_leaf_grows_to_the_four_lines_and_no_further():
    X, y = four_lines()
    plan = _plan(X, y)
    grown = grow(plan, _fitted(plan, Tree.of(None)), max_leaves=6)
    assert len(tree_of(grown).leaves) == 4
    np.testing.assert_allclose(np.sort(grown.best.experts.coef[:, 0, 0]), [-1, -1, 1, 1], atol=0.1)
    assert grown.converged


def test_more_leaves_are_kept_if_every_gain_counts():
    X, y = four_lines(300)
    plan = _plan(X, y, criterion="likelihood")
    messages = []
    grown = grow(plan, _fitted(plan, Tree.of(None)), max_leaves=5, report=messages.append)
    assert len(tree_of(grown).leaves) == 5
    assert [message.split(":")[1].split(",")[0] for message in messages] == [f" {k} leaves" for k in (2, 3, 4, 5)]


def test_six_leaves_are_pruned_to_four():
    X, y = four_lines(500)
    plan = _plan(X, y)
    full = _fitted(plan, Tree.of([[[None, None], None], [[None, None], None]]))
    pruned = prune(plan, full)
    assert len(tree_of(pruned).leaves) == 4
    assert plan.cost(pruned) < plan.cost(full)


def test_the_local_gain_is_a_lower_bound_of_the_whole_gain():
    X, y = four_lines(400)
    plan = _plan(X, y)
    one = _fitted(plan, Tree.uniform(1, 2))
    share = np.exp(one.best.experts.log_density(X, y[:, None]) + one.best.gate.log_proba(X))
    weights = share / share.sum(axis=1, keepdims=True)
    split = split_leaf(plan, one, weights, leaf=0)
    grown = grow(plan, one, max_leaves=3)
    assert split.gain > 0
    assert grown.best_objective >= one.best_objective + split.gain - 1e-6 * abs(one.best_objective)


def test_the_gate_that_matters_least_costs_least():
    X, y = four_lines(400)
    plan = _plan(X, y)
    fitted = _fitted(plan, Tree.uniform(2, 2))
    log_joint = fitted.best.experts.log_density(X, y[:, None]) + fitted.best.gate.log_proba(X)
    weights = np.exp(log_joint - np.logaddexp.reduce(log_joint, axis=1)[:, None])
    losses = collapse_losses(plan, fitted, weights)
    assert set(losses) == {0, 1, 4}
    assert min(losses.values()) > 10


def test_leaves_without_rows_to_divide_are_not_split():
    X, y = np.ones((5, 1)), np.arange(5.0)
    plan = _plan(X, y)
    one = _fitted(plan, Tree.of(None))
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
