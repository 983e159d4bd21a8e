"""The families of checkpoints: each a table of names and a translation of its config, to ours and back."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from mixtura.errors import UserError
from mixtura.hub import latent, names
from mixtura.hub.library import make_config
from mixtura.hub.translate import Values, attention, causal, moe_recipe, recipe, shared_values
from mixtura.mapping import Rule
from mixtura.models.causal import CausalConfig


@dataclass(frozen=True, kw_only=True)
class Family:
    """One family: what its tensors are called, and what its config says.

    Attributes:
        architecture: the class that vLLM, llama.cpp and transformers look for.
        pairs: the names.
        read: its config -> ours.
        write: our config -> the values that differ from what all families share.

    Example:
        >>> FAMILIES["mixtral"].architecture
        'MixtralForCausalLM'
    """

    architecture: str
    pairs: Sequence[names.Pair]
    read: Callable[[Any], CausalConfig]
    write: Callable[[CausalConfig], Values]

    def reading(self) -> list[Rule]:
        """Rules from a checkpoint's names to ours."""
        return [pair.reading() for pair in (*names.ENDS, *self.pairs)]

    def writing(self) -> list[Rule]:
        """Rules from our names to a checkpoint's."""
        return [pair.writing() for pair in (*names.ENDS, *self.pairs)]


def family_of(model_type: str) -> Family:
    """The family of a config's `model_type`.

    Raises:
        UserError: none that is known here.

    Example:
        >>> family_of("bert")
        Traceback (most recent call last):
        ...
        mixtura.errors.UserError: expected a model_type among deepseek_v2, deepseek_v3, glm4_moe, gpt_oss, granitemoe, \
llama, mistral, mixtral, olmoe, qwen2, qwen2_moe, qwen3, qwen3_moe, got 'bert'
    """
    if model_type not in FAMILIES:
        raise UserError(f"expected a model_type among {', '.join(sorted(FAMILIES))}, got {model_type!r}")
    return FAMILIES[model_type]


def write_config(config: CausalConfig, model_type: str) -> Any:
    """A family's config for a model of ours.

    Raises:
        UserError: the family cannot express the model: what it would read back is another one.

    Example:
        >>> config = CausalConfig.plain(vocab_size=10, context=16, layers=2, dim=8, heads=2, hidden=16)
        >>> write_config(config, "llama").num_attention_heads
        2
        >>> write_config(config, "mixtral")
        Traceback (most recent call last):
        ...
        mixtura.errors.UserError: expected a model that 'mixtral' can express, got a dense one; use llama, mistral, \
qwen2 or qwen3
    """
    family = family_of(model_type)
    if (config.moe is None) != (model_type in DENSE):
        kind, others = ("a dense one", DENSE) if config.moe is None else ("a mixture", sorted({*FAMILIES} - {*DENSE}))
        listed = f"{', '.join(others[:-1])} or {others[-1]}"
        raise UserError(f"expected a model that {model_type!r} can express, got {kind}; use {listed}")
    written = make_config(model_type, {**shared_values(config), **family.write(config)})
    written.architectures = [family.architecture]
    wanted, again = _flat(config), _flat(family.read(written))
    for name, value in wanted.items():
        if again[name] != value:
            raise UserError(
                f"expected a model that {model_type!r} can express, got {name}={value!r}, which it would read back as "
                f"{again[name]!r}"
            )
    return written


def _flat(config: CausalConfig) -> Values:
    """Every value, those of the parts too, without what acts in training only or names tokens."""
    values = {f.name: getattr(config, f.name) for f in fields(config) if f.name not in ("special_tokens", "moe")}
    values |= {f"attention.{f.name}": getattr(config.attention, f.name) for f in fields(config.attention)}
    if config.moe is not None:
        recipe = replace(config.moe, losses={}, dropout=0.0)
        values |= {f"moe.{f.name}": getattr(recipe, f.name) for f in fields(recipe)}
    del values["attention"]
    return values


def _softmax_first(c: Any) -> Values:
    """Renormalised, the softmax over all experts is the one over the chosen: our default order."""
    return {"router_options": {} if c.norm_topk_prob else {"order": "softmax_topk"}}


def _uniform_window(c: Any) -> tuple[int | None, ...]:
    window = getattr(c, "sliding_window", None)
    return (window,) * c.num_hidden_layers if window else ()


def _layer_windows(c: Any) -> tuple[int | None, ...]:
    windows = tuple(c.sliding_window if kind == "sliding_attention" else None for kind in c.layer_types)
    return windows if any(windows) else ()


def _write_uniform(config: CausalConfig) -> Values:
    window = config.windows[0] if config.windows else None
    return {"sliding_window": window, "use_sliding_window": window is not None}


def _write_layers(config: CausalConfig) -> Values:
    windows = config.windows or (None,) * config.layers
    window = next((w for w in windows if w), None)
    kinds = ["full_attention" if w is None else "sliding_attention" for w in windows]
    return {"sliding_window": window, "use_sliding_window": window is not None, "layer_types": kinds}


def _read_llama(c: Any) -> CausalConfig:
    bias = bool(c.attention_bias)
    if getattr(c, "mlp_bias", False):
        raise UserError("expected MLPs without biases, got mlp_bias=True")
    return causal(c, attention(c, {"bias": bias, "out_bias": bias}))


def _write_llama(config: CausalConfig) -> Values:
    return {"attention_bias": config.attention.out_bias}


def _read_mistral(c: Any) -> CausalConfig:
    return causal(c, attention(c), {"windows": _uniform_window(c)})


def _read_qwen2(c: Any) -> CausalConfig:
    return causal(c, attention(c, {"bias": True}), {"windows": _layer_windows(c)})


def _read_qwen3(c: Any) -> CausalConfig:
    bias = bool(c.attention_bias)
    return causal(c, attention(c, {"bias": bias, "out_bias": bias, "qk_norm": "head"}), {"windows": _layer_windows(c)})


def _write_qwen3(config: CausalConfig) -> Values:
    return {**_write_layers(config), **_write_llama(config)}


def _read_mixtral(c: Any) -> CausalConfig:
    moe = moe_recipe(c, hidden=c.intermediate_size, num_experts=c.num_local_experts)
    return causal(c, attention(c), {"windows": _uniform_window(c), "moe": moe})


def _write_mixtral(config: CausalConfig) -> Values:
    moe = recipe(config)
    sizes = {"num_local_experts": moe.num_experts, "num_experts_per_tok": moe.k, "intermediate_size": moe.hidden}
    return {**_write_uniform(config), **sizes}


def _dense_blocks(c: Any) -> tuple[int, ...]:
    step, listed = c.decoder_sparse_step, c.mlp_only_layers
    return tuple(i for i in range(c.num_hidden_layers) if i in listed or (i + 1) % step)


def _write_qwen_moe(config: CausalConfig) -> Values:
    moe = recipe(config)
    return {
        "num_experts": moe.num_experts,
        "num_experts_per_tok": moe.k,
        "moe_intermediate_size": moe.hidden,
        "norm_topk_prob": moe.router_options.get("order") != "softmax_topk",
        "mlp_only_layers": list(config.dense_blocks),
        "decoder_sparse_step": 1,
    }


def _read_qwen2_moe(c: Any) -> CausalConfig:
    shared = {"shared_hidden": c.shared_expert_intermediate_size, "shared_gate": "sigmoid"}
    moe = moe_recipe(c, {**_softmax_first(c), **shared}, hidden=c.moe_intermediate_size, num_experts=c.num_experts)
    heads = attention(c, {"bias": bool(c.qkv_bias)})
    return causal(c, heads, {"windows": _layer_windows(c), "moe": moe, "dense_blocks": _dense_blocks(c)})


def _write_qwen2_moe(config: CausalConfig) -> Values:
    if not recipe(config).shared_hidden:
        raise UserError("expected a shared expert for 'qwen2_moe', got none; use qwen3_moe, olmoe or mixtral")
    shared = {"shared_expert_intermediate_size": recipe(config).shared_hidden, "qkv_bias": config.attention.bias}
    return {**_write_qwen_moe(config), **_write_layers(config), **shared}


def _read_qwen3_moe(c: Any) -> CausalConfig:
    bias = bool(c.attention_bias)
    moe = moe_recipe(c, {**_softmax_first(c)}, hidden=c.moe_intermediate_size, num_experts=c.num_experts)
    heads = attention(c, {"bias": bias, "out_bias": bias, "qk_norm": "head"})
    return causal(c, heads, {"windows": _uniform_window(c), "moe": moe, "dense_blocks": _dense_blocks(c)})


def _write_qwen3_moe(config: CausalConfig) -> Values:
    return {**_write_qwen_moe(config), **_write_uniform(config), **_write_llama(config)}


def _read_olmoe(c: Any) -> CausalConfig:
    if c.clip_qkv is not None:
        raise UserError(f"expected clip_qkv=None, got {c.clip_qkv}: clipped queries and keys are not supported")
    bias = bool(c.attention_bias)
    moe = moe_recipe(c, {**_softmax_first(c)}, hidden=c.intermediate_size, num_experts=c.num_experts)
    return causal(c, attention(c, {"bias": bias, "out_bias": bias, "qk_norm": "all"}), {"moe": moe})


def _write_olmoe(config: CausalConfig) -> Values:
    moe = recipe(config)
    return {**_write_qwen_moe(config), **_write_llama(config), "intermediate_size": moe.hidden}


def _read_gpt_oss(c: Any) -> CausalConfig:
    if (c.swiglu_alpha, c.swiglu_limit) != (1.702, 7.0):
        raise UserError(f"expected swiglu_alpha=1.702 and limit 7.0, got {c.swiglu_alpha} and {c.swiglu_limit}")
    bias = bool(c.attention_bias)
    moe = moe_recipe(
        c, {"activation": "clamped_swiglu", "bias": True}, hidden=c.intermediate_size, num_experts=c.num_local_experts
    )
    heads = attention(c, {"bias": bias, "out_bias": bias, "sinks": True})
    return causal(c, heads, {"windows": _layer_windows(c), "moe": moe, "router_bias": True})


def _write_gpt_oss(config: CausalConfig) -> Values:
    return {**_write_mixtral(config), **_write_layers(config), **_write_llama(config)}


def _read_granite(c: Any) -> CausalConfig:
    bias, width = bool(c.attention_bias), c.hidden_size // c.num_attention_heads
    scale = None if c.attention_multiplier == width**-0.5 else float(c.attention_multiplier)
    return causal(
        c,
        attention(c, {"bias": bias, "out_bias": bias, "scale": scale}),
        {
            "moe": moe_recipe(c, hidden=c.intermediate_size, num_experts=c.num_local_experts),
            "embedding_scale": float(c.embedding_multiplier),
            "residual_scale": float(c.residual_multiplier),
            "logits_scale": float(c.logits_scaling),
        },
    )


def _write_granite(config: CausalConfig) -> Values:
    scale = config.attention.scale
    return {
        **_write_mixtral(config),
        **_write_llama(config),
        "attention_multiplier": config.attention.head_dim**-0.5 if scale is None else scale,
        "embedding_multiplier": config.embedding_scale,
        "residual_multiplier": config.residual_scale,
        "logits_scaling": config.logits_scale,
    }


def _family(architecture: str, read: Callable[[Any], CausalConfig], write: Any, *pairs: Sequence[names.Pair]) -> Family:
    table = [pair for part in pairs for pair in part]
    return Family(architecture=f"{architecture}ForCausalLM", pairs=table, read=read, write=write)


A, D = names.ATTENTION, names.DENSE
FAMILIES: dict[str, Family] = {
    "llama": _family("Llama", _read_llama, _write_llama, A, D),
    "mistral": _family("Mistral", _read_mistral, _write_uniform, A, D),
    "qwen2": _family("Qwen2", _read_qwen2, _write_layers, A, D),
    "qwen3": _family("Qwen3", _read_qwen3, _write_qwen3, A, D),
    "mixtral": _family("Mixtral", _read_mixtral, _write_mixtral, A, names.MIXTRAL),
    "qwen2_moe": _family("Qwen2Moe", _read_qwen2_moe, _write_qwen2_moe, A, D, names.QWEN2),
    "qwen3_moe": _family("Qwen3Moe", _read_qwen3_moe, _write_qwen3_moe, A, D, names.QWEN),
    "olmoe": _family("Olmoe", _read_olmoe, _write_olmoe, A, names.QWEN),
    "gpt_oss": _family("GptOss", _read_gpt_oss, _write_gpt_oss, A, names.GPT_OSS),
    "granitemoe": _family("GraniteMoe", _read_granite, _write_granite, A, names.GRANITE),
    "deepseek_v2": _family("DeepseekV2", latent.read_v2, latent.write_v2, names.LATENT, D, names.SHARED),
    "deepseek_v3": _family("DeepseekV3", latent.read_v3, latent.write_v3, names.LATENT, D, names.DEEPSEEK),
    "glm4_moe": _family("Glm4Moe", latent.read_glm, latent.write_glm, A, D, names.DEEPSEEK),
}
DENSE = ("llama", "mistral", "qwen2", "qwen3")
