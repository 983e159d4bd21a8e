"""The recipe of a layer: what it builds, and what it refuses."""

import pytest

import mixtura as mx
from mixtura import UserError


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
    with pytest.raises(TypeError, match=r"expected router options among gate, jitter, .*, got noise"):
        mx.MoEConfig(dim=4, hidden=4, num_experts=4, router_options={"noise": 1}).build()


def test_a_k_that_the_router_cannot_have():
    with pytest.raises(UserError, match="expected k=1 with router='switch', got k=2"):
        mx.MoEConfig(dim=4, hidden=4, num_experts=4, k=2, router="switch").build()
