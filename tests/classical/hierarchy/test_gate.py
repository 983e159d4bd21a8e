"""A tree of gates against a loop over paths; EM with it never steps down."""

import numpy as np
import pytest

from mixtura.classical import MoERegressor
from mixtura.classical.data import Data
from mixtura.classical.experts.gaussian import LinearExpert
from mixtura.classical.experts.logistic import LogisticExpert
from mixtura.classical.gates.softmax import SoftmaxGate
from mixtura.classical.hierarchy.gate import TreeGate
from mixtura.classical.hierarchy.tree import Tree, path
from mixtura.classical.softmax import fit_softmax
from mixtura.errors import UserError
from tests.classical.problems import falls

UNEVEN = Tree.of([[None, [None, None]], None, [None, None, None]])


def _data(n_samples=60, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n_samples, 2))
    return Data(X=X, y=rng.normal(size=(n_samples, 1)), sample_weight=np.ones(n_samples)), rng


def test_log_probabilities_are_sums_along_the_paths():
    data, rng = _data()
    weights = rng.dirichlet(np.ones(7), size=60)
    trainer = TreeGate(UNEVEN).bind(data, 7)
    gate = trainer.fit(weights, trainer.fit(weights, None))
    expected = np.zeros((60, 7))
    for expert, leaf in enumerate(UNEVEN.leaves):
        for node, place in path(UNEVEN, leaf):
            expected[:, expert] += gate.at(node).log_proba(data.X)[:, place]
    np.testing.assert_allclose(gate.log_proba(data.X), expected, atol=1e-12)
    np.testing.assert_allclose(trainer.log_score(gate), expected, atol=1e-12)
    np.testing.assert_allclose(np.exp(expected).sum(axis=1), 1.0)


def test_each_node_is_fitted_to_the_sums_of_its_children():
    data, rng = _data()
    weights = rng.dirichlet(np.ones(7), size=60)
    trainer = TreeGate(UNEVEN, node=SoftmaxGate(ridge=0.5, max_steps=50)).bind(data, 7)
    gate = trainer.fit(weights, None)
    columns = trainer.trainers[2].columns
    # Node 1 has expert 0 to the left and experts 1 and 2 to the right.
    alone = fit_softmax(columns, np.c_[weights[:, 0], weights[:, 1:3].sum(axis=1)], ridge=0.5)
    np.testing.assert_allclose(gate.at(1).coef, alone.coef, atol=1e-6)
    assert gate.n_parameters == (2 + 1 + 1 + 2) * 3
    assert gate.penalty == pytest.approx(sum(node.penalty for node in gate.nodes))


@pytest.mark.parametrize("targets", ["real", "label"])
def test_em_never_steps_down(targets):
    family = LogisticExpert() if targets == "label" else LinearExpert()
    found = {
        seed: lost
        for seed in range(100)
        for tree in [(Tree.uniform(2, 2), Tree.of([[None, None], None]), Tree.of([None, [None, None, None]]))[seed % 3]]
        if (lost := falls(seed, family, TreeGate(tree), targets=targets, n_experts=len(tree.leaves), iterations=6))
    }
    assert found == {}


def test_a_tree_of_depth_one_is_the_flat_mixture():
    data, _ = _data(200)
    y = np.abs(data.X[:, 0]) + 0.1 * data.y[:, 0]
    flat = MoERegressor(3, random_state=0, n_init=1).fit(data.X, y)
    tree = MoERegressor(3, gate=TreeGate(Tree.uniform(1, 3)), random_state=0, n_init=1)
    shares = np.eye(3)[np.digitize(data.X[:, 0], [-0.5, 0.5])]
    flat, tree = (model.set_params(division=shares).fit(data.X, y) for model in (flat, tree))
    np.testing.assert_allclose(tree.predict(data.X), flat.predict(data.X), atol=1e-8)
    assert tree.n_parameters_ == flat.n_parameters_


def test_another_number_of_experts_is_refused():
    with pytest.raises(UserError, match="n_experts = 7, the leaves"):
        TreeGate(UNEVEN).bind(_data()[0], 4)
