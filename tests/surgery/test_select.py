import copy

import pytest
import torch

from mixtura.errors import UserError
from mixtura.surgery.select import numbers_of, select
from tests.surgery.layers import ROUTERS, build, by_hand


@pytest.mark.parametrize("router", ROUTERS)
def test_another_order_is_the_same_function(router):
    layer, x = build(router).eval(), torch.randn(20, 8)
    expected = layer(x)
    select(layer, [2, 0, 3, 1])
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-6)
    if router != "null_experts":
        torch.testing.assert_close(layer(x), by_hand(layer, x), rtol=0, atol=1e-6)


def test_what_was_frozen_stays_frozen_and_modes_stay():
    layer = build("topk").eval()
    layer.experts.up_proj.requires_grad_(requires_grad=False)
    layer.router.weight.requires_grad_(requires_grad=False)
    select(layer, [0, 1])
    assert not layer.experts.up_proj.requires_grad
    assert not layer.router.weight.requires_grad
    assert layer.experts.down_proj.requires_grad
    assert not layer.experts.training


def test_choices_follow_where_they_are_part_of_the_method():
    dense, gshard = build("dense"), build("gshard")
    select(dense, [0, 1, 2])
    select(gshard, [1])
    assert (dense.router.k, gshard.router.k) == (3, 1)
    layer = build("topk")
    select(layer, [0], k=1)
    assert layer(torch.randn(3, 8)).shape == (3, 8)


def test_a_copy_shares_nothing():
    layer = build("topk")
    other = copy.deepcopy(layer)
    select(layer, [0, 0, 0])
    with torch.no_grad():
        layer.experts.up_proj.zero_()
        layer.router.weight.zero_()
    assert other.experts.up_proj.all()
    assert other.router.weight.all()


def test_numbers_by_layer_and_router_that_cannot():
    assert numbers_of(range(2), "x") == [0, 1]
    layer = build("sigmoid")
    layer.router.groups = 2
    with pytest.raises(UserError, match="without groups, got SigmoidBias"):
        select(layer, [0, 1])
