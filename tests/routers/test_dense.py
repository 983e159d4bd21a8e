"""Dense and Hard against their equations."""

import pytest
import torch

from mixtura import UserError
from mixtura.routers.dense import Dense, Hard
from tests.routers.tables import of_probs, rows

PROBS = [[0.2, 0.5, 0.3], [0.1, 0.2, 0.7]]


def test_dense_sends_every_token_everywhere_by_its_probability():
    routing = of_probs(Dense(2, 3), PROBS)
    assert rows(routing.expert_N, 3) == [[1, 2, 0], [2, 1, 0]]
    torch.testing.assert_close(routing.weight_N, torch.tensor([0.5, 0.3, 0.2, 0.7, 0.2, 0.1]))
    torch.testing.assert_close(routing.probs_TE, torch.tensor(PROBS))
    assert routing.choices == 3


def test_hard_takes_the_best_with_weight_one():
    routing = of_probs(Hard(2, 3), PROBS)
    assert routing.expert_N.tolist() == [1, 2]
    assert routing.weight_N.tolist() == [1.0, 1.0]  # to the last bit


def test_hards_weight_is_exactly_one_for_any_probability():
    assert (Hard(16, 7, init_std=1.0)(torch.randn(500, 16)).weight_N == 1).all()


def test_hards_gradient_is_that_of_the_probability():
    router, x_TD = Hard(4, 3, init_std=1.0), torch.randn(6, 4)
    upstream = torch.randn(6)
    (router(x_TD).weight_N * upstream).sum().backward()
    got = router.weight.grad.clone()
    router.weight.grad = None
    ((x_TD @ router.weight.T).softmax(-1).max(-1).values * upstream).sum().backward()
    torch.testing.assert_close(got, router.weight.grad)


@pytest.mark.parametrize("kind", [Dense, Hard])
def test_bad_sizes(kind):
    with pytest.raises(UserError, match="expected num_experts of at least 1, got 0"):
        kind(4, 0)
