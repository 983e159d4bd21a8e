"""DeepSeek-V2 and V3, and GLM-4-MoE: shared experts beside many small ones, compressed keys and values."""

from typing import Any

from mixtura.config import MoEConfig
from mixtura.errors import UserError
from mixtura.hub.library import latent_scale, rotary
from mixtura.hub.translate import Values, attention, causal, moe_recipe, recipe
from mixtura.models.attention import AttentionConfig, Latent
from mixtura.models.causal import CausalConfig


def _latent_attention(c: Any, *, interleaved: bool) -> AttentionConfig:
    bias = bool(c.attention_bias)
    return attention(
        c,
        {
            "head_dim": c.qk_nope_head_dim,
            "rotary": rotary(c, interleaved=interleaved),
            "bias": bias,
            "out_bias": bias,
            "latent": Latent(kv_rank=c.kv_lora_rank, q_rank=c.q_lora_rank, value_dim=c.v_head_dim),
            "scale": latent_scale(c, c.qk_nope_head_dim + c.qk_rope_head_dim),
        },
    )


def _mixture(c: Any, **changes: Any) -> MoEConfig:
    hidden = c.moe_intermediate_size
    shared = {"shared_hidden": c.n_shared_experts * hidden}
    return moe_recipe(c, {**shared, **changes}, hidden=hidden, num_experts=c.n_routed_experts)


def _sigmoid_mixture(c: Any) -> MoEConfig:
    options = {
        "groups": c.n_group,
        "group_k": c.topk_group,
        "renormalize": bool(c.norm_topk_prob),
        "scale": c.routed_scaling_factor,
    }
    return _mixture(c, router="sigmoid_bias", router_options=options)


def _first_blocks(c: Any) -> tuple[int, ...]:
    return tuple(range(min(c.first_k_dense_replace, c.num_hidden_layers)))


def read_v3(c: Any) -> CausalConfig:
    """DeepSeek-V3's config -> ours.

    Example:
        >>> from mixtura.hub.library import make_config
        >>> read_v3(make_config("deepseek_v3", {})).moe.router
        'sigmoid_bias'
    """
    config = _latent_attention(c, interleaved=bool(c.rope_interleave))
    return causal(c, config, {"moe": _sigmoid_mixture(c), "dense_blocks": _first_blocks(c)})


def read_v2(c: Any) -> CausalConfig:
    """DeepSeek-V2's config -> ours.

    Raises:
        UserError: a choice by groups, weights that are scaled or renormalised, MLPs with biases.

    Example:
        >>> from mixtura.hub.library import make_config
        >>> read_v2(make_config("deepseek_v2", {"num_experts_per_tok": 6})).moe.router_options
        {'order': 'softmax_topk'}
    """
    wanted = {"topk_method": "greedy", "routed_scaling_factor": 1.0, "norm_topk_prob": False, "mlp_bias": False}
    for name, value in wanted.items():
        if getattr(c, name) != value:
            raise UserError(f"expected {name}={value!r}, as DeepSeek-V2-Lite has it, got {getattr(c, name)!r}")
    moe = _mixture(c, router_options={"order": "softmax_topk"})
    return causal(c, _latent_attention(c, interleaved=True), {"moe": moe, "dense_blocks": _first_blocks(c)})


def read_glm(c: Any) -> CausalConfig:
    """GLM-4-MoE's config -> ours.

    Example:
        >>> from mixtura.hub.library import make_config
        >>> config = read_glm(make_config("glm4_moe", {"hidden_size": 64, "num_attention_heads": 8}))
        >>> config.attention.head_dim, 2 * len(config.attention.rotary.frequencies)
        (8, 4)
    """
    config = attention(c, {"bias": bool(c.attention_bias), "qk_norm": "head" if c.use_qk_norm else "none"})
    return causal(c, config, {"moe": _sigmoid_mixture(c), "dense_blocks": _first_blocks(c)})


def _write_mixture(config: CausalConfig, family: str, *, router: str) -> Values:
    moe = recipe(config)
    if moe.router != router or not moe.shared_hidden:
        raise UserError(f"expected {router} routers and shared experts for {family!r}, got others")
    return {
        "n_routed_experts": moe.num_experts,
        "num_experts_per_tok": moe.k,
        "moe_intermediate_size": moe.hidden,
        "n_shared_experts": moe.shared_hidden // moe.hidden,
        "first_k_dense_replace": len(config.dense_blocks),
    }


def _write_sigmoid(config: CausalConfig, family: str) -> Values:
    values, options = _write_mixture(config, family, router="sigmoid_bias"), recipe(config).router_options
    return {
        **values,
        "n_group": options.get("groups", 1),
        "topk_group": options.get("group_k", 1),
        "norm_topk_prob": options.get("renormalize", True),
        "routed_scaling_factor": options.get("scale", 1.0),
        "num_nextn_predict_layers": 0,
    }


def _write_latent(config: CausalConfig, family: str) -> Values:
    found = config.attention.latent
    if found is None:
        raise UserError(f"expected latent attention for {family!r}, got another")
    width = 2 * len(config.attention.rotary.frequencies)
    return {
        "head_dim": width,
        "qk_rope_head_dim": width,
        "qk_nope_head_dim": config.attention.head_dim,
        "v_head_dim": found.value_dim,
        "kv_lora_rank": found.kv_rank,
        "q_lora_rank": found.q_rank,
        "attention_bias": config.attention.out_bias,
    }


def write_v3(config: CausalConfig) -> Values:
    """Our config -> what DeepSeek-V3 writes in its own way.

    Raises:
        UserError: another attention, other routers, no shared experts.

    Example:
        >>> from mixtura.hub.library import make_config
        >>> write_v3(read_v3(make_config("deepseek_v3", {})))["n_group"]
        8
    """
    interleaved = config.attention.rotary.interleaved
    return {
        **_write_latent(config, "deepseek_v3"),
        **_write_sigmoid(config, "deepseek_v3"),
        "rope_interleave": interleaved,
    }


def write_v2(config: CausalConfig) -> Values:
    """Our config -> what DeepSeek-V2 writes in its own way.

    Raises:
        UserError: another attention, other routers, no shared experts.

    Example:
        >>> from mixtura.hub.library import make_config
        >>> write_v2(read_v2(make_config("deepseek_v2", {"num_experts_per_tok": 6})))["num_experts_per_tok"]
        6
    """
    return {**_write_latent(config, "deepseek_v2"), **_write_mixture(config, "deepseek_v2", router="topk")}


def write_glm(config: CausalConfig) -> Values:
    """Our config -> what GLM-4-MoE writes in its own way.

    Raises:
        UserError: other routers, no shared experts.

    Example:
        >>> from mixtura.hub.library import make_config
        >>> config = make_config("glm4_moe", {"hidden_size": 64, "num_attention_heads": 8, "use_qk_norm": True})
        >>> write_glm(read_glm(config))["use_qk_norm"]
        True
    """
    norms = {"use_qk_norm": config.attention.qk_norm == "head", "attention_bias": config.attention.bias}
    return {**_write_sigmoid(config, "glm4_moe"), **norms}
