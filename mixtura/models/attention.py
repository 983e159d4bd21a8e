"""Attention as published decoders have it: grouped queries, normalised heads, sinks, windows, latent keys and values.

Shapes here: H query heads, G key and value heads, d the width of a head, r of its rotated part.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # torch's own customary name

from mixtura.errors import UserError

QKNorm = Literal["none", "head", "all"]
LATENT_EPS = 1e-6  # of the norms between the two halves of a latent projection, in every published model


@dataclass(frozen=True, kw_only=True)
class Rotary:
    """Rotary position embedding (Su et al. 2021) by its frequencies, whatever scaling rule they came from.

    Attributes:
        frequencies: radians per position of each pair, r / 2 numbers.
        scale: multiplies sines and cosines (YaRN: Peng et al. 2023, section 3.4).
        interleaved: pairs are neighbours; else the i-th number of each half.
        rule: what a checkpoint says the frequencies came from, in its own words, to write it back.

    Example:
        >>> Rotary.plain(4, base=10_000.0).frequencies
        (1.0, 0.009999999776482582)
    """

    frequencies: tuple[float, ...]
    scale: float = 1.0
    interleaved: bool = False
    rule: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def plain(cls, width: int, *, base: float) -> "Rotary":
        """The unscaled frequencies base^(-2i / r)."""
        frequencies = 1.0 / (base ** (torch.arange(0, width, 2, dtype=torch.float32) / width))
        return cls(frequencies=tuple(frequencies.tolist()), rule={"rope_type": "default", "rope_theta": base})

    def tables(self, length: int, *, like: Tensor, start: int = 0) -> tuple[Tensor, Tensor]:
        """Cosines and sines of positions from `start` on, in the dtype of a tensor: (L, r / 2) each."""
        positions = torch.arange(start, start + length, dtype=torch.float32, device=like.device)
        angle = torch.outer(positions, torch.tensor(self.frequencies, dtype=torch.float32, device=like.device))
        return (angle.cos() * self.scale).to(like.dtype), (angle.sin() * self.scale).to(like.dtype)

    def rotate(self, x: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
        """Turn the first r numbers of (B, H, L, d) by position; interleaved pairs come out as halves."""
        x, rest = x.tensor_split([2 * len(self.frequencies)], dim=-1)
        a, b = (x[..., 0::2], x[..., 1::2]) if self.interleaved else x.chunk(2, dim=-1)
        cos, sin = tables
        return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], dim=-1)


class Cache:
    """What the attention of each block keeps of the tokens seen so far: keys and values, or what they come out of.

    Room is made for twice as many tokens whenever it is full, so that storing one costs the same on average.

    Attributes:
        length: tokens that every block has stored.

    Shapes: each pair (B, G, L, d) and (B, G, L, another d).

    Example:
        >>> cache = Cache()
        >>> first, _ = cache.extend(0, torch.zeros(1, 1, 3, 4), torch.zeros(1, 1, 3, 4))
        >>> cache.length = 3
        >>> cache.extend(0, torch.ones(1, 1, 1, 4), torch.ones(1, 1, 1, 4))[0].shape
        torch.Size([1, 1, 4, 4])
    """

    def __init__(self) -> None:
        self.length = 0
        self._stored: dict[tuple[int, int], Tensor] = {}

    def extend(self, block: int, *new: Tensor) -> tuple[Tensor, ...]:
        """Store one block's new tensors behind its others; returns all of them."""
        return tuple(self._extend((block, number), x) for number, x in enumerate(new))

    def _extend(self, key: tuple[int, int], x_BGLd: Tensor) -> Tensor:
        B, G, L, d = x_BGLd.shape
        end, stored = self.length + L, self._stored.get(key)
        if stored is None or stored.shape[2] < end:
            room = x_BGLd.new_empty(B, G, max(2 * self.length, end), d)
            if stored is not None:
                room[:, :, : self.length] = stored[:, :, : self.length]
            self._stored[key] = stored = room
        stored[:, :, self.length : end] = x_BGLd
        return stored[:, :, :end]


@dataclass(frozen=True, kw_only=True)
class Latent:
    """Widths of attention with compressed keys and values (DeepSeek-AI 2024, section 2.1).

    Attributes:
        kv_rank: width that keys and values are compressed to.
        q_rank: the same of queries; None: they are not compressed.
        value_dim: width of a value head.

    Example:
        >>> Latent(kv_rank=8, q_rank=None, value_dim=4).q_rank is None
        True
    """

    kv_rank: int
    q_rank: int | None
    value_dim: int


@dataclass(frozen=True, kw_only=True)
class AttentionConfig:
    """Sizes and kinds of one model's attention.

    Attributes:
        dim: D.
        heads: H.
        kv_heads: G; each serves H / G query heads.
        head_dim: d, of queries and keys; of a latent attention without the rotated part.
        rotary: positions; of a latent attention its width is beside `head_dim`, else within it, at its beginning.
        qk_norm: RMS norm of queries and keys with learned weights: of each "head", or of "all" heads together.
        bias: biases of the projections to queries, keys and values (latent: of the compressing ones).
        out_bias: of the output projection.
        sinks: one learned logit per head that takes its share of the softmax and gives nothing (gpt-oss).
        latent: compressed keys and values; None: plain.
        scale: of the products; None: 1 / sqrt(width of a query).
        eps: of the norms.

    Raises:
        UserError: heads that kv_heads do not divide, an unknown qk_norm.

    Example:
        >>> AttentionConfig(dim=8, heads=2, kv_heads=1, head_dim=4, rotary=Rotary.plain(4, base=1e4)).qk_norm
        'none'
    """

    dim: int
    heads: int
    kv_heads: int
    head_dim: int
    rotary: Rotary
    qk_norm: QKNorm = "none"
    bias: bool = False
    out_bias: bool = False
    sinks: bool = False
    latent: Latent | None = None
    scale: float | None = None
    eps: float = 1e-6

    def __post_init__(self) -> None:
        if self.kv_heads < 1 or self.heads % self.kv_heads:
            raise UserError(f"expected kv_heads that divide heads={self.heads}, got kv_heads={self.kv_heads}")
        if self.qk_norm not in get_args(QKNorm):
            raise UserError(f"expected qk_norm among {', '.join(get_args(QKNorm))}, got {self.qk_norm!r}")

    def build(self, *, window: int | None = None) -> nn.Module:
        """The module: (B, L, D) and rotary tables -> (B, L, D)."""
        kind = Attention if self.latent is None else LatentAttention
        return kind(self, window=window)


def attend(
    q_BHLd: Tensor,
    k_BGLd: Tensor,
    v_BGLd: Tensor,
    *,
    window: int | None = None,
    sinks: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Causal attention: (B, H, L, width of a value).

    Args:
        q_BHLd: queries, of the last L of the tokens that the keys are of.
        k_BGLd: keys.
        v_BGLd: values.
        window: a token sees itself and the window - 1 before it; None: all before it.
        sinks: (H,), see `AttentionConfig`.
        scale: see `AttentionConfig`.

    Example:
        >>> x = torch.ones(1, 1, 2, 4)
        >>> attend(x, x, x, sinks=torch.full((1,), 2.0))[0, 0, :, 0].tolist()  # e^2 / (e^2 + e^2), 2 e^2 / (3 e^2)
        [0.5, 0.6666666865348816]
    """
    options: dict[str, Any] = {"scale": scale, "enable_gqa": q_BHLd.shape[1] != k_BGLd.shape[1]}
    L, all_L = q_BHLd.shape[2], k_BGLd.shape[2]
    if (window is None or window >= all_L) and sinks is None and L in (1, all_L):
        return F.scaled_dot_product_attention(q_BHLd, k_BGLd, v_BGLd, is_causal=L > 1, **options)
    places_L = torch.arange(all_L, device=q_BHLd.device)
    distance_LL = places_L[-L:].unsqueeze(1) - places_L
    is_seen_LL = (distance_LL >= 0) & (distance_LL < (window or all_L))
    if sinks is None:
        return F.scaled_dot_product_attention(q_BHLd, k_BGLd, v_BGLd, attn_mask=is_seen_LL, **options)
    # A sink is one more key, zero like its value, whose logit is all mask.
    score_LL = torch.zeros_like(is_seen_LL, dtype=q_BHLd.dtype).masked_fill(~is_seen_LL, -torch.inf)
    H = q_BHLd.shape[1]
    mask = torch.cat(
        [score_LL.expand(1, H, L, all_L), sinks.to(q_BHLd.dtype).view(1, H, 1, 1).expand(1, H, L, 1)], dim=-1
    )
    k, v = (F.pad(x, (0, 0, 0, 1)) for x in (k_BGLd, v_BGLd))
    return F.scaled_dot_product_attention(q_BHLd, k, v, attn_mask=mask, **options)


class Attention(nn.Module):
    """Causal self-attention with grouped queries.

    Example:
        >>> config = AttentionConfig(dim=8, heads=2, kv_heads=1, head_dim=4, rotary=Rotary.plain(4, base=1e4))
        >>> x = torch.zeros(1, 3, 8)
        >>> Attention(config)(x, config.rotary.tables(3, like=x)).shape
        torch.Size([1, 3, 8])
    """

    def __init__(self, config: AttentionConfig, *, window: int | None = None) -> None:
        super().__init__()
        self.config, self.window = config, window
        widths = {"q": config.heads * config.head_dim, "k": config.kv_heads * config.head_dim}
        self.q, self.k, self.v = (nn.Linear(config.dim, widths[x], bias=config.bias) for x in ("q", "k", "k"))
        self.out = nn.Linear(widths["q"], config.dim, bias=config.out_bias)
        self.q_norm = self.k_norm = None
        if config.qk_norm != "none":
            normed = widths if config.qk_norm == "all" else dict.fromkeys(widths, config.head_dim)
            self.q_norm, self.k_norm = (nn.RMSNorm(normed[x], eps=config.eps) for x in ("q", "k"))
        self.sinks = nn.Parameter(torch.zeros(config.heads)) if config.sinks else None

    def forward(
        self, x_BLD: Tensor, tables: tuple[Tensor, Tensor], *, cache: Cache | None = None, block: int = 0
    ) -> Tensor:
        """(B, L, D) -> (B, L, D); with a cache, L new tokens behind those that the block has stored there."""
        rotary = self.config.rotary
        q, k = self._heads(self.q(x_BLD), self.q_norm), self._heads(self.k(x_BLD), self.k_norm)
        k, v = rotary.rotate(k, tables), self._heads(self.v(x_BLD), None)
        if cache is not None:
            k, v = cache.extend(block, k, v)
        y = attend(
            rotary.rotate(q, tables),
            k,
            v,
            window=self.window,
            sinks=self.sinks,
            scale=self.config.scale,
        )
        mixed: Tensor = self.out(y.transpose(1, 2).flatten(2))
        return mixed

    def _heads(self, x: Tensor, norm: nn.RMSNorm | None) -> Tensor:
        """Cut into heads, normalised before or after: (B, L, *) -> (B, *, L, d)."""
        d = self.config.head_dim
        if norm is not None and self.config.qk_norm == "all":
            x = norm(x)
        x = x.unflatten(-1, (-1, d))
        if norm is not None and self.config.qk_norm == "head":
            x = norm(x)
        return x.transpose(1, 2)


class LatentAttention(nn.Module):
    """Causal self-attention whose keys and values come out of one narrow vector per token; see `Latent`.

    Example:
        >>> latent = Latent(kv_rank=6, q_rank=None, value_dim=4)
        >>> rotary = Rotary.plain(2, base=1e4)
        >>> config = AttentionConfig(dim=8, heads=2, kv_heads=2, head_dim=4, rotary=rotary, latent=latent)
        >>> x = torch.zeros(1, 3, 8)
        >>> LatentAttention(config)(x, rotary.tables(3, like=x)).shape
        torch.Size([1, 3, 8])
    """

    def __init__(self, config: AttentionConfig, *, window: int | None = None) -> None:
        super().__init__()
        latent = config.latent
        assert latent is not None
        self.config, self.window, self.rotated = config, window, 2 * len(config.rotary.frequencies)
        self.rank, self.value_dim = latent.kv_rank, latent.value_dim
        queries = config.heads * (config.head_dim + self.rotated)
        if latent.q_rank is None:
            self.q: nn.Module = nn.Linear(config.dim, queries, bias=False)
        else:
            self.q = nn.Sequential(
                nn.Linear(config.dim, latent.q_rank, bias=config.bias),
                nn.RMSNorm(latent.q_rank, eps=LATENT_EPS),
                nn.Linear(latent.q_rank, queries, bias=False),
            )
        self.kv_down = nn.Linear(config.dim, latent.kv_rank + self.rotated, bias=config.bias)
        self.kv_norm = nn.RMSNorm(latent.kv_rank, eps=LATENT_EPS)
        self.kv_up = nn.Linear(latent.kv_rank, config.heads * (config.head_dim + latent.value_dim), bias=False)
        self.out = nn.Linear(config.heads * latent.value_dim, config.dim, bias=config.out_bias)

    def forward(
        self, x_BLD: Tensor, tables: tuple[Tensor, Tensor], *, cache: Cache | None = None, block: int = 0
    ) -> Tensor:
        """(B, L, D) -> (B, L, D); a cache holds the narrow vectors, from which keys and values are made each time."""
        H, d, rotary = self.config.heads, self.config.head_dim, self.config.rotary
        q, q_rotated = self.q(x_BLD).unflatten(-1, (H, -1)).transpose(1, 2).split([d, self.rotated], dim=-1)
        narrow, k_rotated = self.kv_down(x_BLD).split([self.rank, self.rotated], dim=-1)
        narrow, k_rotated = self.kv_norm(narrow).unsqueeze(1), rotary.rotate(k_rotated.unsqueeze(1), tables)
        if cache is not None:
            narrow, k_rotated = cache.extend(block, narrow, k_rotated)
        kv = self.kv_up(narrow.squeeze(1)).unflatten(-1, (H, -1)).transpose(1, 2)
        k, v = kv.split([d, self.value_dim], dim=-1)
        k_rotated = k_rotated.expand(-1, H, -1, -1)  # all heads share the rotated part of the keys
        q = torch.cat([q, rotary.rotate(q_rotated, tables)], dim=-1)
        y = attend(q, torch.cat([k, k_rotated], dim=-1), v, window=self.window, scale=self.config.scale)
        mixed: Tensor = self.out(y.transpose(1, 2).flatten(2))
        return mixed
