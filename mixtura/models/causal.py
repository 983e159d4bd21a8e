"""A decoder for published checkpoints: `mixtura.hub` reads Llama, Qwen, Mixtral, DeepSeek and their like into it.

`GPT` is the house's own small model; this one has every choice that those families make as a field of its config.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from mixtura.config import MoEConfig
from mixtura.errors import UserError
from mixtura.experts import MLP
from mixtura.models.attention import AttentionConfig, Cache, Rotary


@dataclass(frozen=True, kw_only=True)
class CausalConfig:
    """Sizes and kinds of a decoder.

    Attributes:
        vocab_size: V.
        context: longest sequence, in tokens.
        layers: blocks.
        hidden: F of the dense blocks.
        attention: of every block.
        windows: for each block how many tokens a token sees, None: all before it; empty: None for every block.
        activation: of the dense blocks.
        moe: the recipe of each mixture; None: a dense model.
        dense_blocks: numbers of the blocks that are dense all the same.
        router_bias: the routers are linear maps with a bias.
        eps: of the norms.
        embedding_scale: multiplies the embedding (Granite).
        residual_scale: multiplies what each half of a block adds (Granite).
        logits_scale: divides the logits (Granite).
        tie_weights: use the embedding as the output layer too.
        special_tokens: ids of the vocabulary by name, `eos_token_id` for instance; the model makes no use of them.

    Raises:
        UserError: windows that are not one per block, a bias for routers without a mixture; in `plain`, heads that do
            not divide the width into even parts.

    Example:
        >>> config = CausalConfig.plain(vocab_size=10, context=16, layers=2, dim=8, heads=2, hidden=16)
        >>> config.attention.head_dim, config.is_moe(0)
        (4, False)
    """

    vocab_size: int
    context: int
    layers: int
    hidden: int
    attention: AttentionConfig
    windows: tuple[int | None, ...] = ()
    activation: str = "swiglu"
    moe: MoEConfig | None = None
    dense_blocks: tuple[int, ...] = ()
    router_bias: bool = False
    eps: float = 1e-6
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    logits_scale: float = 1.0
    tie_weights: bool = False
    special_tokens: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.windows and len(self.windows) != self.layers:
            raise UserError(f"expected a window for each of {self.layers} blocks, got {len(self.windows)}")
        if self.router_bias and self.moe is None:
            raise UserError("expected router_bias with a mixture, got moe=None")

    @classmethod
    def plain(
        cls,
        *,
        vocab_size: int,
        context: int,
        layers: int,
        dim: int,
        heads: int,
        hidden: int,
        kv_heads: int | None = None,
        moe: MoEConfig | None = None,
    ) -> "CausalConfig":
        """As Llama and, with a mixture, Mixtral have it: everything else at its default."""
        if dim % heads or dim // heads % 2:
            raise UserError(f"expected heads that divide dim={dim} into parts of even width, got heads={heads}")
        attention = AttentionConfig(
            dim=dim,
            heads=heads,
            kv_heads=kv_heads or heads,
            head_dim=dim // heads,
            rotary=Rotary.plain(dim // heads, base=10_000.0),
        )
        return cls(vocab_size=vocab_size, context=context, layers=layers, hidden=hidden, attention=attention, moe=moe)

    @property
    def dim(self) -> int:
        """D."""
        return self.attention.dim

    def is_moe(self, block: int) -> bool:
        """Whether block number `block`, from 0, holds a mixture."""
        return self.moe is not None and block not in self.dense_blocks

    def feed_forward(self, block: int) -> nn.Module:
        """What stands behind the attention of block number `block`, from 0."""
        if self.moe is None or not self.is_moe(block):
            return MLP(dim=self.dim, hidden=self.hidden, activation=self.activation)
        if not self.router_bias:
            return self.moe.build()
        gate = nn.Linear(self.dim, self.moe.num_experts)
        return replace(self.moe, router_options={**self.moe.router_options, "gate": gate}).build()


class CausalBlock(nn.Module):
    """Attention, then a mixture or a dense MLP, each on a normalised residual branch.

    Example:
        >>> config = CausalConfig.plain(vocab_size=10, context=16, layers=2, dim=8, heads=2, hidden=16)
        >>> type(CausalBlock(config, 0).feed_forward).__name__
        'MLP'
    """

    def __init__(self, config: CausalConfig, number: int) -> None:
        super().__init__()
        self.number, self.scale = number, config.residual_scale
        self.attention_norm = nn.RMSNorm(config.dim, eps=config.eps)
        self.attention = config.attention.build(window=config.windows[number] if config.windows else None)
        self.feed_forward_norm = nn.RMSNorm(config.dim, eps=config.eps)
        self.feed_forward = config.feed_forward(number)

    def forward(self, x_BLD: Tensor, tables: tuple[Tensor, Tensor], *, cache: Cache | None = None) -> Tensor:
        """(B, L, D) -> (B, L, D); with a cache, L new tokens behind those in it."""
        attended = self.attention(self.attention_norm(x_BLD), tables, cache=cache, block=self.number)
        x_BLD = x_BLD + _times(attended, self.scale)
        y_BLD: Tensor = x_BLD + _times(self.feed_forward(self.feed_forward_norm(x_BLD)), self.scale)
        return y_BLD


def _times(x: Tensor, factor: float) -> Tensor:
    """The product, without a pass over memory where the factor is 1, as nearly all families have it."""
    return x if factor == 1 else x * factor


class Causal(nn.Module):
    """A language model: token ids to logits.

    Args:
        config: the sizes.

    Shapes: ids int64 (B, L) -> logits (B, L, V).

    Raises:
        UserError: in `forward`, a sequence longer than the context.

    Example:
        >>> import torch
        >>> config = CausalConfig.plain(vocab_size=10, context=16, layers=2, dim=8, heads=2, hidden=16)
        >>> Causal(config)(torch.zeros(2, 8, dtype=torch.long)).shape
        torch.Size([2, 8, 10])
    """

    def __init__(self, config: CausalConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.dim)
        self.blocks = nn.ModuleList(CausalBlock(config, number) for number in range(config.layers))
        self.norm = nn.RMSNorm(config.dim, eps=config.eps)
        self.head = nn.Linear(config.dim, config.vocab_size, bias=False)
        nn.init.normal_(self.embedding.weight, std=0.02)
        nn.init.normal_(self.head.weight, std=0.02)
        self.tie()

    def tie(self) -> None:
        """Make the output layer the embedding, where the config says so: `to_empty` parts what shares memory."""
        if self.config.tie_weights:
            self.head.weight = self.embedding.weight

    def new_cache(self) -> Cache:
        """An empty cache, for `forward`."""
        return Cache()

    def forward(self, ids_BL: Tensor, *, cache: Cache | None = None) -> Tensor:
        """Token ids (B, L) to logits (B, L, V); with a cache, the tokens continue those in it."""
        start, length = (0 if cache is None else cache.length), ids_BL.shape[1]
        if start + length > self.config.context:
            raise UserError(f"expected at most {self.config.context} tokens (context), got {start + length}")
        x_BLD = _times(self.embedding(ids_BL), self.config.embedding_scale)
        tables = self.config.attention.rotary.tables(length, like=x_BLD, start=start)
        for block in self.blocks:
            x_BLD = block(x_BLD, tables, cache=cache)
        if cache is not None:
            cache.length += length
        return _times(self.head(self.norm(x_BLD)), 1 / self.config.logits_scale)
