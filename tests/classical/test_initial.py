import numpy as np
import pytest

from mixtura.classical.data import Data
from mixtura.classical.initial import first_division, joint_columns, seed_rows, soften


def data(n_samples=60, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n_samples, 2)) * [1.0, 1e4]
    return Data(X=X, y=rng.normal(size=(n_samples, 1)), sample_weight=np.ones(n_samples))


@pytest.mark.parametrize("restart", [0, 1])
def test_neither_order_nor_repetition_changes_the_division(restart):
    plain = data()
    counts = np.random.default_rng(1).integers(1, 4, size=60)
    order = np.random.default_rng(2).permutation(60)
    weighted = Data(X=plain.X[order], y=plain.y[order], sample_weight=counts[order].astype(float))
    repeated = Data(X=plain.X.repeat(counts, 0), y=plain.y.repeat(counts, 0), sample_weight=np.ones(counts.sum()))
    one = first_division(weighted, 3, restart=restart, seed=5)
    many = first_division(repeated, 3, restart=restart, seed=5)
    np.testing.assert_allclose(one[np.argsort(order)].repeat(counts, 0), many, atol=1e-9)
    np.testing.assert_allclose(one.sum(axis=1), 1.0)


def test_other_seeds_give_other_divisions():
    divisions = [first_division(data(), 3, restart=1, seed=s) for s in range(5)]
    assert all(np.abs(a - b).max() > 0.3 for i, a in enumerate(divisions) for b in divisions[:i])


def test_clusters_are_found():
    X = np.concatenate([np.zeros((10, 1)), np.full((10, 1), 9.0)]) + np.linspace(0, 1, 20)[:, None]
    plain = Data(X=X, y=np.zeros((20, 1)), sample_weight=np.ones(20))
    shares = first_division(plain, 2, restart=0, seed=0)
    labels = shares.argmax(axis=1)
    assert (labels[:10] == labels[0]).all()
    assert (labels[10:] == 1 - labels[0]).all()


def test_seeds_are_apart_and_duplicates_are_no_error():
    points = np.repeat([[0.0], [1.0], [5.0]], [50, 1, 1], axis=0)
    rng = np.random.default_rng(0)
    rows = seed_rows(points, np.ones(52), n_seeds=3, rng=rng)
    assert sorted(points[rows, 0]) == [0.0, 1.0, 5.0]
    assert len(seed_rows(np.zeros((4, 1)), np.ones(4), n_seeds=3, rng=rng)) == 3


def test_labels_enter_one_hot():
    labelled = Data(X=np.zeros((4, 1)), y=np.array([0, 1, 2, 2]), sample_weight=np.ones(4), classes=np.arange(3))
    assert joint_columns(labelled, targets=True).shape == (4, 4)
    assert joint_columns(labelled, targets=False).shape == (4, 1)


def test_softened_shares_sum_to_one():
    np.testing.assert_allclose(soften(np.eye(3)).sum(axis=1), 1.0)


@pytest.mark.parametrize("restart", [0, 1])
def test_columns_that_the_gate_does_not_look_at_change_no_division(restart):
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(40, 2)), rng.normal(size=(40, 1))
    other = np.column_stack([X[:, 0], 5 * rng.normal(size=40)])
    one, two = (
        first_division(
            Data(X=columns, y=y, sample_weight=np.ones(40)), 3, restart=restart, seed=1, columns=np.array([0])
        )
        for columns in (X, other)
    )
    np.testing.assert_array_equal(one, two)
