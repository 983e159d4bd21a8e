"""Configs: what is written is read back equal, and what cannot be said is refused."""

from dataclasses import replace

import pytest
from transformers import AutoConfig

import mixtura as mx
from mixtura.errors import UserError
from mixtura.hub.families import FAMILIES, family_of, write_config
from mixtura.models.causal import CausalConfig
from tests.hub.tiny import MODELS, SIZES


def read(name: str) -> CausalConfig:
    kind, values = MODELS[name]
    return family_of(kind).read(AutoConfig.for_model(kind, **{**SIZES, **values}))


@pytest.mark.parametrize("name", MODELS)
def test_written_and_read_back(name):
    config = read(name)
    written = write_config(config, MODELS[name][0])
    assert FAMILIES[MODELS[name][0]].read(written) == config
    assert written.architectures == [FAMILIES[MODELS[name][0]].architecture]


def test_what_the_configs_say():
    assert read("Mistral").windows == (5, 5, 5)
    assert read("Qwen2, windows").windows == (None, None, 4)
    assert read("gpt-oss").windows == (3, None, 3)
    assert read("Llama").windows == ()
    assert read("Qwen2-MoE").dense_blocks == (0, 2)
    assert read("Qwen3-MoE").dense_blocks == (0,)
    assert read("DeepSeek-V3").dense_blocks == (0,)
    assert read("Qwen2-MoE").moe.router_options == {"order": "softmax_topk"}
    assert read("Qwen3-MoE").moe.router_options == {}
    assert read("DeepSeek-V3").moe.shared_hidden == 16
    assert len(read("GLM-4-MoE").attention.rotary.frequencies) == 2  # half of a head of 8 turns
    assert (read("Granite-MoE").attention.scale, read("Granite-MoE, biases").attention.scale) == (0.3, None)
    # Theirs counts a balanced choice of K as K, ours as 1.
    assert read("OLMoE").moe.losses == {"load_balance": 2 * 0.01}
    assert read("DeepSeek-V3").moe.losses == {}
    scale = read("DeepSeek-V3, YaRN").attention.scale
    assert scale == pytest.approx(10**-0.5 * (0.1 * 1.3862943611198906 + 1) ** 2)


def test_losses_survive():
    config = read("OLMoE")
    config = replace(config, moe=replace(config.moe, losses={"load_balance": 0.5, "z": 0.1}, dropout=0.2))
    written = write_config(config, "olmoe")
    assert written.router_aux_loss_coef == 0.25


@pytest.mark.parametrize(
    ("kind", "values", "match"),
    [
        ("olmoe", {"clip_qkv": 8.0}, "expected clip_qkv=None"),
        ("llama", {"mlp_bias": True}, "expected MLPs without biases"),
        ("gpt_oss", {"swiglu_limit": 3.0}, r"expected swiglu_alpha=1\.702 and limit 7\.0, got 1\.702 and 3\.0"),
        ("deepseek_v2", {"topk_method": "group_limited_greedy"}, "expected topk_method='greedy', as DeepSeek-V2-Lite"),
        ("deepseek_v2", {"routed_scaling_factor": 16.0}, r"expected routed_scaling_factor=1\.0, .* got 16\.0"),
        ("mixtral", {"hidden_act": "relu"}, "expected hidden_act among silu, gelu, gelu_pytorch_tanh, got 'relu'"),
    ],
)
def test_what_is_not_supported_is_refused(kind, values, match):
    with pytest.raises(UserError, match=match):
        family_of(kind).read(AutoConfig.for_model(kind, **{**SIZES, **values}))


@pytest.mark.parametrize(
    ("kind", "change", "match"),
    [
        ("mixtral", {"moe.activation": "relu"}, "got moe.activation='relu'"),
        ("mixtral", {"moe.capacity_factor": 1.0}, "got moe.capacity_factor=1.0, which it would read back as None"),
        ("mixtral", {"dense_blocks": (0,)}, r"got dense_blocks=\(0,\)"),
        ("qwen3_moe", {}, "got attention.qk_norm='none', which it would read back as 'head'"),
        ("qwen2_moe", {}, "expected a shared expert for 'qwen2_moe', got none"),
        ("deepseek_v3", {}, "expected latent attention for 'deepseek_v3', got another"),
        ("glm4_moe", {}, "expected sigmoid_bias routers and shared experts for 'glm4_moe', got others"),
        ("llama", {}, "got a mixture; use deepseek_v2, deepseek_v3, .* or qwen3_moe"),
    ],
)
def test_what_a_family_cannot_say(kind, change, match):
    config = CausalConfig.plain(
        vocab_size=10,
        context=16,
        layers=2,
        dim=8,
        heads=2,
        hidden=16,
        moe=mx.MoEConfig(dim=8, hidden=16, num_experts=4, k=2, router="topk"),
    )
    inner = {name.removeprefix("moe."): value for name, value in change.items() if name.startswith("moe.")}
    outer = {name: value for name, value in change.items() if not name.startswith("moe.")}
    with pytest.raises(UserError, match=match):
        write_config(replace(config, moe=replace(config.moe, **inner), **outer), kind)
