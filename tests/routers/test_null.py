"""Null experts: what they give, what they cost, and which routers know them."""

import pytest
import torch

import mixtura as mx
from mixtura import UserError
from mixtura.routers import Dense, Hierarchical, SigmoidBias, Switch, TopK, TopP
from mixtura.routers.null import NullExperts
from tests.routers.tables import of_probs, rows


def filled(counts, vector, mix):
    null = NullExperts(2, counts)
    with torch.no_grad():
        null.vector.copy_(torch.tensor(vector))
        null.mix.copy_(torch.tensor(mix))
    return null


def test_each_kind_by_hand():
    # The mix of both constants is (3/4, 1/4) for x = (1, 0), since the logits are log 3 and 0.
    log3 = torch.tensor(3.0).log().item()
    null = filled(
        {"zero": 1, "copy": 2, "constant": 2}, [[8.0, 0.0], [0.0, 8.0]], [[[log3, 5.0]] * 2, [[0.0, -7.0]] * 2]
    )
    x_TD = torch.tensor([[1.0, 0.0]] * 5)
    null_TK = torch.tensor([[0, -1], [1, 2], [3, -4], [4, 0], [-1, -1]])
    y_TD = null(x_TD, null_TK, torch.tensor([[0.5, 0.25]] * 5))
    # zero; two copies; 0.5 (3/4 x + 1/4 (8, 0)); 0.5 (3/4 x + 1/4 (0, 8)) and a zero; nothing
    expected = [[0.0, 0.0], [0.75, 0.0], [1.375, 0.0], [0.375, 1.0], [0.0, 0.0]]
    torch.testing.assert_close(y_TD, torch.tensor(expected))


def test_the_layer_adds_them_and_no_expert_works():
    layer = mx.MoEConfig(
        dim=2, hidden=4, num_experts=2, k=1, router_options={"order": "softmax_topk", "null_experts": {"copy": 1}}
    ).build()
    routing = of_probs(layer.router, [[0.2, 0.1, 0.7], [0.1, 0.3, 0.6]])
    assert rows(routing.expert_N, 1) == [[2], [2]]
    assert (routing.null_experts, routing.num_experts, routing.route_counts().tolist()) == (1, 2, [0, 0, 2])
    with mx.record(layer) as log:
        y = layer(torch.eye(2))
    torch.testing.assert_close(y, torch.tensor([[0.7, 0.0], [0.0, 0.6]]))
    assert log[""][0].kept_E.tolist() == [0, 0]


def test_they_take_no_place_where_experts_are_full():
    layer = mx.MoEConfig(
        dim=2,
        hidden=4,
        num_experts=2,
        k=1,
        capacity=mx.Capacity(fixed=1),
        router_options={"order": "softmax_topk", "null_experts": {"copy": 1}},
    ).build()
    of_probs(layer.router, [[0.1, 0.2, 0.7], [0.1, 0.2, 0.7]])
    torch.testing.assert_close(layer(torch.eye(2)), 0.7 * torch.eye(2))


def test_padding_gets_nothing_of_them():
    layer = mx.MoEConfig(dim=2, hidden=4, num_experts=2, router="top_p", router_options={"null_experts": {"copy": 9}})
    layer = layer.build()
    x = torch.randn(3, 2)
    y = layer(x, mask=torch.tensor([True, False, True]))
    assert not y[1].any()
    assert y[0].any()


def test_a_threshold_counts_them():
    router = TopP(2, 2, p=0.6, null_experts={"zero": 1})
    routing = of_probs(router, [[0.3, 0.1, 0.6], [0.5, 0.1, 0.4]])
    assert rows(routing.expert_N, 2) == [[2, -1], [0, 2]]


def test_a_replay_chooses_them_again():
    recipe = mx.MoEConfig(dim=4, hidden=4, num_experts=3, router="top_p", router_options={"null_experts": {"copy": 2}})
    layer, x = recipe.build(), torch.randn(40, 4)
    torch.nn.init.normal_(layer.router.weight)
    with mx.record(layer) as log:
        layer(x)
    torch.nn.init.normal_(layer.router.weight)
    with mx.replay(layer, log), mx.record(layer) as again:
        layer(x)
    then, now = log[""][0].routing, again[""][0].routing
    assert torch.equal(then.expert_N, now.expert_N)
    assert (now.expert_N > 2).any()
    share_T1 = now.weight_N.masked_fill(now.expert_N < 3, 0).view(40, 3).sum(-1, keepdim=True)
    torch.testing.assert_close(now.bypass_TD, share_T1 * x)


def test_every_parameter_learns():
    router = TopK(4, 2, 2, null_experts={"zero": 1, "copy": 1, "constant": 1}, init_std=1.0)
    router(torch.randn(50, 4)).bypass_TD.square().sum().backward()
    assert all(p.grad.norm() > 0 for p in router.parameters())


def test_fp32_in_a_bf16_model():
    router = TopK(4, 2, 2, null_experts={"copy": 1, "constant": 1}).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert router(torch.randn(5, 4).bfloat16()).bypass_TD.dtype is torch.float32


def test_resetting_draws_them_afresh():
    router = Switch(64, 4, null_experts={"constant": 3})
    with torch.no_grad():
        router.null_experts.vector.fill_(torch.nan)
        router.null_experts.mix.fill_(torch.nan)
    router.reset_parameters()
    assert router.null_experts.vector.std().item() == pytest.approx(0.02, rel=0.3)
    assert router.null_experts.mix.std().item() == pytest.approx(0.1 / 8, rel=0.3)
    assert router.weight.shape == (7, 64)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NullExperts(2, {"one": 1}), "expected null_experts among zero, copy, constant, got one"),
        (lambda: NullExperts(2, {"zero": -1}), "at least 0 of kind 'zero', got -1"),
        (lambda: SigmoidBias(2, 2, null_experts={"zero": 1}), "expected null_experts with TopK.*, got SigmoidBias"),
        (lambda: Dense(2, 2, null_experts={"zero": 1}), "got Dense"),
        (lambda: Hierarchical(2, 2, null_experts={"zero": 1}), "got Hierarchical"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_print_shows_how_many():
    assert "NullExperts(zero=1, copy=0, constant=2)" in repr(TopK(4, 2, null_experts={"zero": 1, "constant": 2}))
