"""The shape of a tree: numbering, spans, edits, refusals."""

import numpy as np
import pytest

from mixtura.classical.hierarchy.tree import Tree, path
from mixtura.errors import UserError


def test_nodes_are_numbered_in_preorder_and_experts_from_left_to_right():
    tree = Tree.of([[None, None, None], None, [None, None]])
    assert tree.children == ((1, 5, 6), (2, 3, 4), (), (), (), (), (7, 8), (), ())
    assert tree.leaves == (2, 3, 4, 5, 7, 8)
    assert tree.inner == (0, 1, 6)
    assert tree.depths == (0, 1, 2, 2, 2, 1, 1, 2, 2)
    assert tree.parents == (-1, 0, 1, 1, 1, 0, 0, 6, 6)
    assert [tree.span(node) for node in (0, 1, 5, 6, 8)] == [
        slice(0, 6), slice(0, 3), slice(3, 4), slice(4, 6), slice(5, 6),
    ]  # fmt: skip
    assert list(path(tree, 8)) == [(0, 2), (6, 1)]


@pytest.mark.parametrize(
    ("depth", "branching", "leaves", "inner"), [(0, 2, 1, 0), (1, 5, 5, 1), (4, 2, 16, 15), (2, (3, 2), 6, 4)]
)
def test_uniform_trees(depth, branching, leaves, inner):
    tree = Tree.uniform(depth, branching)
    assert (len(tree.leaves), len(tree.inner), max(tree.depths)) == (leaves, inner, depth)


def test_shape_undoes_of_and_replace_changes_one_node():
    tree = Tree.of([None, [None, None]])
    assert Tree.of(tree.shape()) == tree
    assert tree.replace(1, (None, None)).shape() == ((None, None), (None, None))
    assert tree.replace(2, None).shape() == (None, None)
    assert tree.replace(0, None) == Tree(((),))


def test_node_weights_are_sums_of_the_leaves_below():
    weights = np.array([[0.1, 0.2, 0.3, 0.4]])
    np.testing.assert_allclose(Tree.uniform(2, 2).node_weights(weights), [[1.0, 0.3, 0.1, 0.2, 0.7, 0.3, 0.4]])


@pytest.mark.parametrize("shape", [[None], [], "ab", 3, [[None, None], 1]])
def test_wrong_shapes_are_refused(shape):
    with pytest.raises(UserError, match="nested sequences"):
        Tree.of(shape)


def test_wrong_sizes_are_refused():
    with pytest.raises(UserError, match="depth"):
        Tree.uniform(-1, 2)
    with pytest.raises(UserError, match="branching"):
        Tree.uniform(2, 1)
    with pytest.raises(UserError, match="each of depth = 2 levels"):
        Tree.uniform(2, [2, 2, 2])
