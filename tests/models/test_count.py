"""Parameters counted by hand."""

import pytest
from torch import nn

import mixtura as mx
from mixtura.models.count import count_parameters
from mixtura.models.gpt import GPT, GPTConfig


@pytest.mark.parametrize(
    ("options", "experts", "rest"),
    [
        ({"activation": "relu"}, 2 * 4 * 8, 6 * 4),
        ({"activation": "swiglu"}, 3 * 4 * 8, 6 * 4),
        ({"activation": "relu", "bias": True}, 2 * 4 * 8 + 8 + 4, 6 * 4),
        ({"activation": "relu", "shared_hidden": 5, "shared_gate": "sigmoid"}, 2 * 4 * 8, 6 * 4 + 2 * 4 * 5 + 4),
        ({"activation": "relu", "router": "noisy_topk"}, 2 * 4 * 8, 2 * 6 * 4),
    ],
)
@pytest.mark.parametrize("k", [2, 6])
def test_of_a_layer(options, experts, rest, k):
    layer = mx.MoEConfig(dim=4, hidden=8, num_experts=6, k=k, **options).build()
    assert count_parameters(layer) == (6 * experts + rest, k * experts + rest)


def test_of_a_gpt():
    config = GPTConfig(vocab_size=50, dim=8, layers=2, heads=2, hidden=12, num_experts=5, moe_every=2)
    norms, attention, mlp = 2 * 8, 4 * 8 * 8, 2 * 8 * 12
    total = 50 * 8 + 2 * (norms + attention) + mlp + (5 * mlp + 5 * 8) + 8
    assert count_parameters(GPT(config)) == (total, total - 4 * mlp)


def test_untied_weights_count_twice():
    sizes = {"vocab_size": 50, "dim": 8, "layers": 1, "heads": 2, "num_experts": 0}
    tied, untied = (count_parameters(GPT(GPTConfig(**sizes, tie_weights=tie))) for tie in (True, False))
    assert untied.total - tied.total == 50 * 8


def test_a_dense_model_is_active_as_a_whole():
    assert count_parameters(nn.Linear(3, 4)) == (16, 16)


def test_a_mixture_inside_an_expert_is_idle_once():
    inner = mx.MoEConfig(dim=4, hidden=8, num_experts=4, k=1, router="switch", activation="relu").build()
    layer = mx.MoE(router=mx.routers.TopK(4, 2, 2), experts=mx.ModuleExperts([inner, nn.Linear(4, 4, bias=False)]))
    one = 2 * 4 * 8
    assert count_parameters(layer) == (4 * one + 16 + 16 + 8, one + 16 + 16 + 8)
    layer = mx.MoE(router=mx.routers.Switch(4, 2), experts=mx.ModuleExperts([inner, nn.Linear(4, 4, bias=False)]))
    assert count_parameters(layer) == (4 * one + 16 + 16 + 8, (one + 16 + 16) // 2 + 8)


def test_experts_that_two_layers_share_count_once():
    first, second = (mx.MoEConfig(dim=4, hidden=8, num_experts=4, k=1, router="switch").build() for _ in range(2))
    second.experts = first.experts
    one = 3 * 4 * 8
    assert count_parameters(nn.Sequential(first, second)) == (4 * one + 2 * 16, one + 2 * 16)
