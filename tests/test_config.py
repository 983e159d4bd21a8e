"""The recipe of a layer: what it builds, and what it refuses."""

import pytest
import torch

import mixtura as mx
from mixtura import UserError
from mixtura.config import from_gate
from mixtura.models.count import count_parameters
from mixtura.routers import GShard, GShardGate, NaiveGate, Switch, SwitchGate, TopK


def test_a_recipe_builds_what_it_says():
    recipe = mx.MoEConfig(
        dim=6,
        hidden=8,
        num_experts=4,
        k=3,
        router="sigmoid_bias",
        router_options={"scale": 2.0},
        activation="relu",
        bias=True,
        shared_hidden=5,
        shared_gate="sigmoid",
        capacity_factor=1.25,
        eval_capacity=mx.Capacity(fixed=8),
        pooling="highest",
        policy="priority",
        losses={"z": 1e-3},
    )
    layer = recipe.build()
    assert isinstance(layer.router, mx.routers.SigmoidBias)
    assert (layer.router.k, layer.router.scale) == (3, 2.0)
    assert layer.experts.up_bias.shape == (4, 8)
    assert layer.shared.up_proj.weight.shape == (5, 6)
    assert layer.shared.up_proj.bias is not None
    assert (layer.capacity, layer.eval_capacity) == (mx.Capacity(factor=1.25), mx.Capacity(fixed=8))
    assert (layer.policy, layer.pooling, layer.losses) == ("priority", "highest", {"z": 1e-3})


def test_k_is_the_routers_own_where_it_is_left_out():
    assert mx.MoEConfig(dim=4, hidden=4, num_experts=4).build().router.k == 2
    assert mx.MoEConfig(dim=4, hidden=4, num_experts=4, router="switch").build().router.k == 1


def test_an_option_that_no_router_has():
    with pytest.raises(TypeError, match=r"expected router options among gate, jitter, .*, got nose"):
        mx.MoEConfig(dim=4, hidden=4, num_experts=4, router_options={"nose": 1}).build()


def test_a_k_that_the_router_cannot_have():
    with pytest.raises(UserError, match="expected k=1 with router='switch', got k=2"):
        mx.MoEConfig(dim=4, hidden=4, num_experts=4, k=2, router="switch").build()


class TestGateDicts:
    @pytest.mark.parametrize(
        ("gate", "dialect", "kind"),
        [
            ({"type": "naive", "top_k": 3}, None, TopK),
            ({"type": "gshard", "top_k": 2}, None, GShard),
            ({"type": "switch", "top_k": 1}, "paper", Switch),
            ({"type": "naive"}, "paddle", NaiveGate),
            ({"type": "gshard"}, "fastmoe", GShardGate),
            ({"type": "switch", "dialect": "paddle"}, None, SwitchGate),
        ],
    )
    def test_what_they_build(self, gate, dialect, kind):
        router = mx.MoEConfig(dim=4, hidden=4, num_experts=4, gate=gate, dialect=dialect).build().router
        assert type(router) is kind
        assert router.k == gate.get("top_k", {"naive": 2, "gshard": 2, "switch": 1}[gate["type"]])
        assert getattr(router, "dialect", None) == gate.get("dialect", None if dialect == "paper" else dialect)

    def test_the_papers_naive_gate_is_a_softmax_over_the_chosen(self):
        assert from_gate({"type": "naive"}, dim=4, num_experts=4).order == "topk_softmax"

    def test_other_keys_are_arguments_of_the_router(self):
        gate = {"type": "gshard", "capacity": (1.0, 2.0), "random_routing": False}
        router = from_gate(gate, dim=4, num_experts=4, dialect="paddle")
        assert (router.capacity, router.random_routing) == ((1.0, 2.0), False)

    @pytest.mark.parametrize(
        ("changed", "message"),
        [
            ({"gate": {"type": "soft"}}, "expected a gate with a type among naive, gshard, switch, got 'soft'"),
            ({"gate": {}}, "among naive, gshard, switch, got None"),
            ({"gate": {"type": "gshard", "top_k": 3}}, "expected top_k=2 with a gshard gate, got 3"),
            ({"gate": {"type": "switch", "top_k": 2}}, "expected top_k=1 with a switch gate, got 2"),
            ({"gate": {"type": "naive", "top_k": 5}}, "expected 1 <= k <= num_experts, got k=5"),
            ({"dialect": "tutel"}, "expected a dialect among paper, fastmoe, paddle, got 'tutel'"),
            ({"router": "topk"}, "expected gate or router, got both; router='topk'"),
            ({"router_options": {"jitter": 0.1}}, "options go into the gate"),
            ({"k": 1}, "expected one number of choices, got k=1 and top_k=2 in the gate"),
            ({"gate": None, "dialect": "paddle"}, "expected a dialect with a gate, got dialect='paddle' and no gate"),
        ],
    )
    def test_what_they_refuse(self, changed, message):
        options = {"dim": 4, "hidden": 4, "num_experts": 4, "gate": {"type": "naive", "top_k": 2}, **changed}
        with pytest.raises(UserError, match=message):
            mx.MoEConfig(**options).build()


class TestFineGrained:
    @pytest.mark.parametrize("bias", [False, True])
    def test_the_same_size_in_smaller_parts(self, bias):
        recipe = mx.MoEConfig(dim=8, hidden=12, num_experts=4, k=2, bias=bias, losses={"z": 1e-3})
        whole, fine = recipe.build(), recipe.fine_grained(3).build()
        assert fine.experts.up_proj.shape == (12, 8, 8)
        assert (fine.router.num_experts, fine.router.k, fine.losses) == (12, 6, {"z": 1e-3})
        down_biases = 8 * bias  # each part has a bias of its own behind the second product
        sizes = [count_parameters(layer.experts).total for layer in (whole, fine)]
        assert sizes[1] == sizes[0] + (12 - 4) * down_biases
        counts = [count_parameters(layer) for layer in (whole, fine)]
        assert counts[1].active == counts[0].active + (12 - 4) * 8 + (6 - 2) * down_biases

    def test_parts_of_an_expert_chosen_together_are_the_expert(self):
        recipe = mx.MoEConfig(dim=4, hidden=6, num_experts=2, k=1, router="topk")
        with pytest.warns(UserWarning, match="with k=1 a weight"):
            whole = recipe.build()
        fine = recipe.fine_grained(3).build()
        with torch.no_grad():
            fine.router.weight.copy_(whole.router.weight.repeat_interleave(3, 0))
            up = whole.experts.up_proj.view(2, 2, 3, 2, 4).transpose(1, 2)  # gate and up, cut into three each
            fine.experts.up_proj.copy_(up.reshape(6, 4, 4))
            fine.experts.down_proj.copy_(whole.experts.down_proj.view(2, 4, 3, 2).transpose(1, 2).reshape(6, 4, 2))
        x = torch.randn(9, 4)
        torch.testing.assert_close(3 * fine(x), whole(x))  # three parts share the weight 1

    @pytest.mark.parametrize(
        ("options", "parts", "message"),
        [
            ({"k": 2}, 5, "expected parts that divide hidden=12, got 5"),
            ({"k": 2}, 0, "expected parts that divide hidden=12, got 0"),
            ({}, 2, "expected k, and a router that takes it, got k=None with router='topk'"),
            ({"k": 1, "router": "switch"}, 2, "got k=1 with router='switch'"),
        ],
    )
    def test_what_cannot_be_cut(self, options, parts, message):
        with pytest.raises(UserError, match=message):
            mx.MoEConfig(dim=4, hidden=12, num_experts=4, **options).fine_grained(parts)
