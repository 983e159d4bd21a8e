"""A decoder-only Transformer with mixture-of-experts blocks: RMSNorm, rotary attention, tied embeddings, KV cache.

Shapes here: H heads, d = D / H the width of a head, V the vocabulary.
"""

import warnings
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # torch's own customary name

from mixtura.errors import UserError
from mixtura.layer import MoE
from mixtura.models.blocks import BlocksConfig, feed, reset_parts, run_block
from mixtura.models.fused import RMSNorm, causal_attention, linear_cross_entropy, normalise_and_turn


@dataclass(frozen=True, kw_only=True)
class GPTConfig(BlocksConfig):
    """Sizes of a GPT and of its mixtures.

    Raises:
        UserError: a width that the heads do not divide, an odd head width, or a size below 1.

    Example:
        >>> GPTConfig(dim=64, heads=4, layers=2, num_experts=0).hidden
        128
    """

    vocab_size: int = 257
    """V, tokens of the vocabulary; `mixtura train` takes it from the data."""
    context: int = 128
    """Longest sequence, in tokens; `mixtura train` takes it from the data."""
    tie_weights: bool = True
    """Use the embedding as the output layer too."""

    def __post_init__(self) -> None:
        for name in ("vocab_size", "context", "heads"):
            if getattr(self, name) < 1:
                raise UserError(f"expected {name} of at least 1, got {getattr(self, name)}")
        if self.dim % (2 * self.heads):
            raise UserError(
                f"expected heads that divide dim={self.dim} into parts of even width, got heads={self.heads}"
            )
        super().__post_init__()


class KVCache:
    """Keys and values of the tokens seen so far, one pair per block.

    Shapes: keys and values (layers, B, H, context, d).

    Example:
        >>> KVCache(GPTConfig(), batch_size=1).length
        0
    """

    def __init__(
        self,
        config: GPTConfig,
        *,
        batch_size: int,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        shape = (config.layers, batch_size, config.heads, config.context, config.dim // config.heads)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.length = 0

    def extend(self, block: int, k_BHLd: Tensor, v_BHLd: Tensor) -> tuple[Tensor, Tensor]:
        """Store one block's new keys and values behind the others; returns all of them."""
        end = self.length + k_BHLd.shape[2]
        self.keys[block, :, :, self.length : end] = k_BHLd
        self.values[block, :, :, self.length : end] = v_BHLd
        return self.keys[block, :, :, :end], self.values[block, :, :, :end]

    def take(self, rows_B: Tensor) -> None:
        """Let each row go on from what the row that is named for it has seen: int64 (B,)."""
        for stored in (self.keys, self.values):
            stored[:, :, :, : self.length] = stored[:, rows_B, :, : self.length]


def rotary_tables(context: int, width: int, base: float = 10_000.0) -> tuple[Tensor, Tensor]:
    """Cosines and sines (L, d / 2) of the angles by which each place turns the pairs of a head of width d.

    Source: Su et al. 2021, section 3.4.2.

    Example:
        >>> rotary_tables(3, 4)[1].tolist()[0]
        [0.0, 0.0]
    """
    frequency = base ** -(torch.arange(0, width, 2, dtype=torch.float32) / width)
    angle_Ld = torch.outer(torch.arange(context, dtype=torch.float32), frequency)
    return angle_Ld.cos(), angle_Ld.sin()


class Attention(nn.Module):
    """Causal self-attention with rotary positions and normalised queries and keys.

    Example:
        >>> GPT(GPTConfig()).blocks[0].attention.qkv.weight.shape
        torch.Size([192, 64])
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = nn.Linear(config.dim, 3 * config.dim, bias=False)
        self.out = nn.Linear(config.dim, config.dim, bias=False)

    def forward(
        self, x_BLD: Tensor, rotary: tuple[Tensor, Tensor], *, cache: KVCache | None = None, block: int = 0
    ) -> Tensor:
        """(B, L, D) -> (B, L, D); with a cache, L new tokens behind those already in it."""
        B, L, D = x_BLD.shape
        H, d = self.heads, D // self.heads
        qkv = self.qkv(x_BLD).view(B, L, 3 * H, d)
        y_BLHd = causal_attention(qkv, *rotary) if cache is None else self._continue(qkv, rotary, cache, block)
        mixed: Tensor = self.out(y_BLHd.reshape(B, L, D))
        return mixed

    def _continue(self, qkv: Tensor, rotary: tuple[Tensor, Tensor], cache: KVCache, block: int) -> Tensor:
        """The attention of new tokens to those in the cache and themselves: (B, L, 3H, d) -> (B, L, H, d)."""
        L, H = qkv.shape[1], self.heads
        if L > 1 and cache.length:
            raise UserError(f"expected one token at a time behind a filled cache, got {L}")
        qk, v = qkv.split([2 * H, H], dim=2)
        q, k = normalise_and_turn(qk, *rotary).to(qk.dtype).transpose(1, 2).chunk(2, dim=1)
        k, v = cache.extend(block, k, v.transpose(1, 2))
        return F.scaled_dot_product_attention(q, k, v, is_causal=L > 1).transpose(1, 2)


class Block(nn.Module):
    """Attention, then a mixture or a dense MLP, each on a normalised residual branch.

    Example:
        >>> type(Block(GPTConfig(moe_every=2), 0).feed_forward).__name__
        'MLP'
    """

    def __init__(self, config: GPTConfig, number: int) -> None:
        super().__init__()
        self.number = number
        self.attention_norm = RMSNorm(config.dim)
        self.attention = Attention(config)
        self.feed_forward_norm = RMSNorm(config.dim)
        self.feed_forward = config.feed_forward(number)

    def forward(
        self, x_BLD: Tensor, ids_BL: Tensor, *, rotary: tuple[Tensor, Tensor], cache: KVCache | None = None
    ) -> Tensor:
        """(B, L, D) -> (B, L, D); the token ids are for routers that need them."""
        x_BLD = x_BLD + self.attention(self.attention_norm(x_BLD), rotary, cache=cache, block=self.number)
        return x_BLD + feed(self.feed_forward, self.feed_forward_norm(x_BLD), context=ids_BL)


class GPT(nn.Module):
    """A language model: token ids to logits.

    Args:
        config: the sizes.
        recompute_interval: recompute the activations of every n-th block in the backward pass; 0: keep all.

    Shapes: ids int64 (B, L) -> logits (B, L, V).

    Raises:
        UserError: in `forward`, a sequence longer than the context.

    Warns:
        UserWarning: a router that is not causal (`ExpertChoice`, `Soft`).

    Example:
        >>> GPT(GPTConfig())(torch.zeros(2, 8, dtype=torch.long)).shape
        torch.Size([2, 8, 257])
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, config: GPTConfig, *, recompute_interval: int = 0) -> None:
        super().__init__()
        self.config, self.recompute_interval = config, recompute_interval
        self.embedding = nn.Embedding(config.vocab_size, config.dim)
        self.blocks = nn.ModuleList(Block(config, number) for number in range(config.layers))
        warn_of_the_future(self.blocks)
        self.norm = RMSNorm(config.dim)
        self.head = nn.Linear(config.dim, config.vocab_size, bias=False)
        self._initialise()

    def reset_parameters(self) -> None:
        """Set everything afresh: weights, tied ones included, and rotary tables.

        After `to_empty`, which leaves neither values nor ties: build on the device "meta", `to_empty`, then this.
        """
        if self.config.tie_weights:
            self.head.weight = self.embedding.weight  # `to_empty` parts what shares memory
        reset_parts(self)
        self._initialise()

    def _initialise(self) -> None:
        """What the parts do not know of one another."""
        device = self.embedding.weight.device
        cos, sin = rotary_tables(self.config.context, self.config.dim // self.config.heads)
        self.register_buffer("cos", cos.to(device), persistent=False)
        self.register_buffer("sin", sin.to(device), persistent=False)
        nn.init.normal_(self.embedding.weight, std=0.02)
        nn.init.normal_(self.head.weight, std=0.02)
        for block in self.blocks:
            assert isinstance(block, Block)
            # The residual stream starts as the embedding alone: attention adds nothing until it has learned to.
            nn.init.zeros_(block.attention.out.weight)
        if self.config.tie_weights:
            self.head.weight = self.embedding.weight

    def new_cache(self) -> KVCache:
        """An empty cache for one sequence, for `forward`."""
        weight = self.embedding.weight
        return KVCache(self.config, batch_size=1, device=weight.device, dtype=weight.dtype)

    def forward(self, ids_BL: Tensor, *, targets_BL: Tensor | None = None, cache: KVCache | None = None) -> Tensor:
        """Token ids (B, L) to logits (B, L, V); with a cache, the tokens continue those in it.

        With the tokens that follow, int64 (B, L): their mean nats instead, for which no one holds all logits at once.
        """
        start, length = (0 if cache is None else cache.length), ids_BL.shape[1]
        if start + length > self.config.context:
            raise UserError(f"expected at most {self.config.context} tokens (context), got {start + length}")
        rotary = self.cos[start : start + length], self.sin[start : start + length]
        x_BLD = self.embedding(ids_BL)
        interval = 0 if cache is not None else self.recompute_interval
        for number, block in enumerate(self.blocks):
            x_BLD = run_block(
                partial(block, x_BLD, ids_BL, rotary=rotary, cache=cache), number, recompute_interval=interval
            )
        if cache is not None:
            cache.length += length
        x_BLD = self.norm(x_BLD)
        if targets_BL is not None:
            return linear_cross_entropy(x_BLD.flatten(0, 1), self.head, targets_BL.flatten())
        logits_BLV: Tensor = self.head(x_BLD)
        return logits_BLV


def warn_of_the_future(blocks: nn.ModuleList) -> None:
    """Warn where a router lets a token's result depend on later tokens; for the `__init__` of a model.

    Example:
        >>> warn_of_the_future(GPT(GPTConfig(router="switch")).blocks)
    """
    routers = [block.feed_forward.router for block in blocks if isinstance(block.feed_forward, MoE)]
    seeing = sorted({type(router).__name__ for router in routers if not router.is_causal})
    if seeing:
        # The level leads out of here and the model's __init__, to the line that makes it.
        warnings.warn(
            f"expected a causal router in a language model, got {', '.join(seeing)}: each token's result depends on "
            "later ones, so that its loss is too good and generation differs from training; use a token-choice router",
            stacklevel=3,
        )
