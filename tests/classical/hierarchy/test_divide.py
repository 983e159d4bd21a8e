"""First divisions of a tree: shares, blocks that belong together, few rows, weights as repetition."""

import numpy as np
import pytest

from mixtura.classical.data import Data
from mixtura.classical.gates.softmax import ConstantGate, SoftmaxGate
from mixtura.classical.hierarchy.divide import divide
from mixtura.classical.hierarchy.tree import Tree


def _data(X, weight=None):
    X = np.asarray(X, dtype=float)
    return Data(X=X, y=X[:, :1], sample_weight=np.ones(len(X)) if weight is None else weight)


@pytest.mark.parametrize("restart", [0, 1])
@pytest.mark.parametrize("tree", [Tree.of(None), Tree.uniform(3, 2), Tree.of([[None, None, None], None])])
def test_shares_sum_to_one(tree, restart):
    data = _data(np.random.default_rng(0).normal(size=(50, 2)))
    shares = divide(data, tree, gate=SoftmaxGate(), restart=restart, seed=1)
    assert shares.shape == (50, len(tree.leaves))
    np.testing.assert_allclose(shares.sum(axis=1), 1.0)
    assert (shares > 0).all()


def test_near_clusters_become_siblings():
    centres = np.array([0.0, 1.0, 50.0, 51.0])
    X = (centres[:, None] + 0.01 * np.arange(10)).reshape(-1, 1)
    leaf = divide(_data(X), Tree.uniform(2, 2), gate=SoftmaxGate(), restart=0, seed=0).argmax(axis=1).reshape(4, 10)
    assert (leaf == leaf[:, :1]).all()
    assert leaf[0, 0] // 2 == leaf[1, 0] // 2
    assert leaf[2, 0] // 2 == leaf[3, 0] // 2


def test_fewer_rows_than_leaves_are_divided_evenly_below():
    shares = divide(_data([[0.0], [1.0]]), Tree.uniform(3, 2), gate=SoftmaxGate(), restart=0, seed=0)
    np.testing.assert_allclose(shares.sum(axis=1), 1.0)
    np.testing.assert_allclose(shares.max(axis=1), 0.95 / 4)


def test_a_weight_of_two_is_a_row_that_occurs_twice():
    rng = np.random.default_rng(3)
    X, weight = rng.normal(size=(40, 2)), rng.integers(1, 4, size=40)
    weighted = divide(_data(X, weight.astype(float)), Tree.uniform(2, 2), gate=SoftmaxGate(), restart=0, seed=5)
    repeated = divide(_data(np.repeat(X, weight, axis=0)), Tree.uniform(2, 2), gate=SoftmaxGate(), restart=0, seed=5)
    np.testing.assert_allclose(repeated, np.repeat(weighted, weight, axis=0), atol=1e-9)


def test_a_gate_divides_by_the_columns_that_it_looks_at():
    rng = np.random.default_rng(0)
    X = np.column_stack([100 * rng.normal(size=60), np.repeat([0.0, 9.0], 30)])
    seen = divide(_data(X), Tree.uniform(1, 2), gate=SoftmaxGate(columns=[1]), restart=0, seed=0).argmax(axis=1)
    assert (seen[:30] == seen[0]).all()
    assert (seen[30:] == 1 - seen[0]).all()
    blind = divide(_data(X), Tree.uniform(1, 2), gate=ConstantGate(), restart=0, seed=0)
    assert len(np.unique(blind.round(6))) > 4  # no clusters, which have two soft values
