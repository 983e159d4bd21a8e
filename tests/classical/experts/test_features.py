import numpy as np

from mixtura.classical.experts.features import Features, floor_warnings, variance_floor


def test_features_are_chosen_and_multiplied():
    X = np.array([[2.0, 7.0, 3.0]])
    assert Features(columns=np.array([0, 2]), degree=2)(X).tolist() == [[2.0, 3.0, 4.0, 6.0, 9.0]]
    assert Features(columns=None)(X) is X


def test_the_floor_is_a_share_of_the_weighted_variance():
    y = np.array([[0.0], [2.0], [100.0]])
    np.testing.assert_allclose(variance_floor(y, np.array([1.0, 1.0, 0.0]), 0.01), [0.01])
    assert 0 < variance_floor(np.full((4, 1), 5.0), np.ones(4), 0.01)[0] < 1e-12
    np.testing.assert_allclose(variance_floor(1e-140 * y, np.array([1.0, 1.0, 0.0]), 0.01), [1e-282])
    assert variance_floor(np.zeros((4, 1)), np.ones(4), 0.01)[0] == 1e-24


def test_floor_warnings_name_the_experts():
    assert floor_warnings(np.array([True, False, True])) == [
        "the variance of expert 0, 2 fell to the floor (variance_floor)"
    ]
    assert floor_warnings(np.array([False])) == []
