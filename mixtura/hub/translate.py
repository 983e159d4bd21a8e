"""What the configs of all families have in common, in both directions: theirs -> ours, and our values -> theirs."""

from typing import TYPE_CHECKING, Any

from mixtura.config import MoEConfig
from mixtura.errors import UserError
from mixtura.hub.library import rotary
from mixtura.models.attention import AttentionConfig

if TYPE_CHECKING:
    from mixtura.models.causal import CausalConfig

Values = dict[str, Any]
# A gated MLP's activation by its gate's; no family has another.
ACTIVATIONS = {"silu": "swiglu", "gelu": "geglu", "gelu_pytorch_tanh": "geglu_tanh"}
SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")


def activation(config: Any) -> str:
    """Our name of a config's `hidden_act`.

    Raises:
        UserError: one that gated MLPs here have not.

    Example:
        >>> from mixtura.hub.library import make_config
        >>> activation(make_config("llama", {}))
        'swiglu'
    """
    if config.hidden_act not in ACTIVATIONS:
        raise UserError(f"expected hidden_act among {', '.join(ACTIVATIONS)}, got {config.hidden_act!r}")
    return ACTIVATIONS[config.hidden_act]


def attention(c: Any, changes: Values | None = None) -> AttentionConfig:
    """Our attention of a config, but for what a family has in another way.

    Example:
        >>> from mixtura.hub.library import make_config
        >>> attention(make_config("llama", {"hidden_size": 64, "num_attention_heads": 4}), {}).head_dim
        16
    """
    heads = c.num_attention_heads
    values = {
        "dim": c.hidden_size,
        "heads": heads,
        "kv_heads": c.num_key_value_heads,
        "head_dim": getattr(c, "head_dim", None) or c.hidden_size // heads,
        "eps": c.rms_norm_eps,
    }
    if "rotary" not in (changes or {}):
        values["rotary"] = rotary(c)
    return AttentionConfig(**{**values, **(changes or {})})


def causal(c: Any, attention: AttentionConfig, changes: Values | None = None) -> "CausalConfig":
    """Our decoder of a config with this attention, but for what a family has in another way.

    Example:
        >>> from mixtura.hub.library import make_config
        >>> config = make_config("llama", {"num_hidden_layers": 3})
        >>> causal(config, attention(config, {}), {}).layers
        3
    """
    from mixtura.models.causal import CausalConfig  # late: chains of imports stay short

    values = {
        "vocab_size": c.vocab_size,
        "context": c.max_position_embeddings,
        "layers": c.num_hidden_layers,
        "hidden": c.intermediate_size,
        "activation": activation(c),
        "eps": c.rms_norm_eps,
        "tie_weights": c.tie_word_embeddings,
        "special_tokens": {name: getattr(c, name) for name in SPECIAL},
    }
    return CausalConfig(attention=attention, **{**values, **(changes or {})})


def shared_values(config: "CausalConfig") -> Values:
    """Their values of what all families write alike.

    Example:
        >>> from mixtura.models.causal import CausalConfig
        >>> config = CausalConfig.plain(vocab_size=10, context=16, layers=2, dim=8, heads=2, hidden=16)
        >>> shared_values(config)["hidden_act"]
        'silu'
    """
    attention, moe = config.attention, config.moe
    losses = {} if moe is None else {"router_aux_loss_coef": moe.losses.get("load_balance", 0.0) / (moe.k or 1)}
    back = {ours: theirs for theirs, ours in ACTIVATIONS.items()}
    return {
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.context,
        "num_hidden_layers": config.layers,
        "intermediate_size": config.hidden,
        "hidden_size": config.dim,
        "hidden_act": back.get(config.activation, "silu"),
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.kv_heads,
        "head_dim": attention.head_dim,
        "rope_parameters": dict(attention.rotary.rule),
        "rms_norm_eps": config.eps,
        "tie_word_embeddings": config.tie_weights,
        **dict.fromkeys(SPECIAL),
        **config.special_tokens,
        **losses,
    }


def moe_recipe(c: Any, changes: Values | None = None, *, hidden: int, num_experts: int) -> MoEConfig:
    """Our mixture of a config, but for what a family has in another way.

    Example:
        >>> from mixtura.hub.library import make_config
        >>> moe_recipe(make_config("mixtral", {}), {}, hidden=8, num_experts=4).k
        2
    """
    k, coefficient = c.num_experts_per_tok, getattr(c, "router_aux_loss_coef", None)
    # Theirs has its minimum at K, ours at 1.
    losses = {"load_balance": coefficient * k} if coefficient else {}
    values = {"dim": c.hidden_size, "hidden": hidden, "num_experts": num_experts, "k": k, "losses": losses}
    return MoEConfig(
        **{"activation": activation(c), "router": "topk", "router_options": {}, **values, **(changes or {})}
    )


def recipe(config: "CausalConfig") -> MoEConfig:
    """The mixture of a decoder that has one.

    Example:
        >>> moe = MoEConfig(dim=8, hidden=16, num_experts=4)
        >>> from mixtura.models.causal import CausalConfig
        >>> config = CausalConfig.plain(vocab_size=10, context=16, layers=2, dim=8, heads=2, hidden=16, moe=moe)
        >>> recipe(config) == moe
        True
    """
    assert config.moe is not None
    return config.moe
