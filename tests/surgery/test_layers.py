import pytest
import torch
from torch import nn

import mixtura as mx
from mixtura.errors import UserError
from mixtura.routers import Base, Hash, Sinkhorn, Soft, TopP
from mixtura.surgery.layers import experts_of, mixtures, scale_output, stack_of, weight_sum, weight_sums
from tests.surgery.layers import ROUTERS, build, by_hand


@pytest.mark.parametrize("router", sorted({*ROUTERS} - {"null_experts"}))
def test_sums_are_those_of_the_routing_in_evaluation(router):
    layer, x = build(router).train(), torch.randn(40, 8)
    found = weight_sums(layer.router, x)
    assert layer.router.training
    routing = layer.router.eval()(x)
    expected = [routing.weight_N[routing.token_N == t].sum().item() for t in range(40)]
    torch.testing.assert_close(found, torch.tensor(expected))


def test_a_router_that_hashes_and_one_that_gives_choices_up():
    assert weight_sum(Hash(8, 4, vocab_size=9)) == 1
    with pytest.warns(UserWarning, match="weights of TopP add up to"):
        weight_sum(TopP(8, 4, p=0.5, init_std=1.0))
    with pytest.warns(UserWarning, match="weights of Sinkhorn add up to"):
        weight_sum(Sinkhorn(8, 4, init_std=1.0))


@pytest.mark.parametrize("router", [Base(8, 4), Soft(8, 4)], ids=["base", "soft"])
def test_routers_that_do_more_than_weight(router):
    with pytest.raises(UserError, match=f"only weights experts, got {type(router).__name__}"):
        weight_sum(router)


def test_a_stack_is_a_view_and_its_module_a_copy():
    experts = build("topk").experts
    stack = stack_of(experts)
    assert stack.up.data_ptr() == experts.up_proj.data_ptr()
    copied = experts_of(stack, dropout=0.5)
    assert copied.dropout == 0.5
    assert copied.up_proj.data_ptr() != stack.up.data_ptr()
    assert copied.state_dict().keys() == experts.state_dict().keys()
    assert all(p.device.type == "cpu" and p.requires_grad for p in copied.parameters())


def test_scaled_outputs():
    layer, x = build("topk"), torch.randn(5, 8)
    expected = 3 * by_hand(layer, x)
    layer.experts = experts_of(scale_output(stack_of(layer.experts), 3.0))
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-5)


def test_mixtures_of_modules_are_none_that_can_be_edited():
    router = mx.routers.TopK(4, 2, 2)
    layer = mx.MoE(router=router, experts=mx.ModuleExperts([nn.Linear(4, 4), nn.Linear(4, 4)]))
    with pytest.raises(UserError, match="mixtures of GroupedMLP experts, got a MoE without"):
        mixtures(layer)
