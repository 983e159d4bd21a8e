import numpy as np
import pytest

from mixtura.classical import MoERegressor, agreement, match_experts
from mixtura.errors import UserError
from tests.classical.samples import switching


def test_a_permutation_is_found():
    shares = np.random.default_rng(0).dirichlet(np.full(5, 0.2), size=100)
    order = np.array([3, 0, 4, 1, 2])
    assert np.array_equal(match_experts(shares[:, np.argsort(order)], shares), order)
    assert agreement(shares[:, order], shares) == 1.0


def test_two_fits_of_other_seeds_agree_after_matching():
    X, y, _ = switching(300)
    one, two = (MoERegressor(2, random_state=seed).fit(X, y).responsibilities(X, y) for seed in (0, 3))
    assert agreement(one, two) > 0.99


def test_other_shapes_are_refused():
    with pytest.raises(UserError, match="expected shares of one shape"):
        match_experts(np.ones((2, 2)), np.ones((2, 3)))
