"""The config that is read off a model."""

from dataclasses import replace

import pytest
from torch import nn

import mixtura as mx
from mixtura.errors import UserError
from mixtura.hub.families import family_of
from mixtura.hub.recipe import describe
from mixtura.models.causal import Causal, CausalConfig
from tests.hub.tiny import MODELS, SIZES


def plain(**changes) -> CausalConfig:
    return CausalConfig.plain(vocab_size=10, context=16, layers=3, dim=8, heads=2, hidden=16, **changes)


@pytest.mark.parametrize("name", MODELS)
def test_an_untouched_model_is_what_its_config_says(name):
    from transformers import AutoConfig

    kind, values = MODELS[name]
    config = family_of(kind).read(AutoConfig.for_model(kind, **{**SIZES, **values}))
    found = describe(Causal(config))
    if config.moe is not None and not config.dense_blocks:
        config = replace(config, hidden=config.moe.hidden)  # no block has the other width
    assert found == config


def test_blocks_that_changed():
    model = Causal(plain())
    recipe = mx.MoEConfig(dim=8, hidden=12, num_experts=4, k=2, router="topk", losses={"z": 1e-3})
    model.blocks[1].feed_forward = recipe.build()
    found = describe(model)
    assert found.dense_blocks == (0, 2)
    assert (found.moe.hidden, found.moe.num_experts, found.moe.losses) == (12, 4, {"z": 1e-3})
    assert found.hidden == 16
    model.blocks[2].feed_forward = replace(recipe, num_experts=5).build()
    with pytest.raises(UserError, match="expected blocks of one size"):
        describe(model)
    model.blocks[2].feed_forward = nn.Identity()
    with pytest.raises(UserError, match="expected feed-forward blocks that are MLP or MoE, got Identity"):
        describe(model)


@pytest.mark.parametrize(
    ("layer", "match"),
    [
        (mx.MoEConfig(dim=8, hidden=4, num_experts=2, k=1, router="switch").build(), "got Switch"),
        (
            mx.MoE(router=mx.routers.TopK(8, 2, 2), experts=mx.ModuleExperts([nn.Linear(8, 8), nn.Linear(8, 8)])),
            "expected stacked experts",
        ),
        (
            mx.MoE(
                router=mx.routers.TopK(8, 2, 2, temperature=2.0), experts=mx.GroupedMLP(num_experts=2, dim=8, hidden=4)
            ),
            "without null experts and temperature",
        ),
        (
            mx.MoE(
                router=mx.routers.TopK(8, 2, 2, gate=nn.Sequential(nn.Linear(8, 2))),
                experts=mx.GroupedMLP(num_experts=2, dim=8, hidden=4),
            ),
            "got Sequential",
        ),
        (
            mx.MoE(
                router=mx.routers.TopK(8, 2, 2),
                experts=mx.GroupedMLP(num_experts=2, dim=8, hidden=4),
                shared=nn.Linear(8, 8),
            ),
            "expected a shared MLP",
        ),
    ],
)
def test_parts_that_no_checkpoint_has(layer, match):
    model = Causal(plain())
    for block in model.blocks:
        block.feed_forward = layer
    with pytest.raises(UserError, match=match):
        describe(model)
