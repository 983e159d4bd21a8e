"""An encoder-decoder with mixture-of-experts blocks on both sides, which turns one text into another.

Shapes here: S tokens of the source, L of the target, V of the vocabulary, which both share.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # torch's own customary name

from mixtura.errors import UserError
from mixtura.models.blocks import Block as EncoderBlock
from mixtura.models.blocks import feed, reset_parts
from mixtura.models.fused import RMSNorm, linear_cross_entropy
from mixtura.models.gpt import Attention, GPTConfig, KVCache, rotary_tables, warn_of_the_future

_STD = 0.02
_SHARPER = 1.4


@dataclass(frozen=True, kw_only=True)
class TranslatorConfig(GPTConfig):
    """Sizes of a translator: those of its decoder; the encoder has as many blocks of the same width.

    Raises:
        UserError: what `GPTConfig` refuses.

    Example:
        >>> TranslatorConfig(num_experts=8, moe_every=2).is_moe(1)
        True
    """


class Memory(NamedTuple):
    """What a decoder needs to know of the source.

    Attributes:
        keys_values: of each block's attention to the source, (B, H, S, d) each.
        mask_BS: False for padding; None: there is none.

    Example:
        >>> Memory((), None).mask_BS is None
        True
    """

    keys_values: tuple[tuple[Tensor, Tensor], ...]
    mask_BS: Tensor | None


class CrossAttention(nn.Module):
    """Every token of the target attends to all of the source.

    Source: Vaswani et al. 2017, section 3.2.3.

    Args:
        dim: D.
        heads: H.

    Example:
        >>> attention = CrossAttention(8, heads=2)
        >>> attention(torch.zeros(1, 3, 8), attention.keys_values(torch.zeros(1, 5, 8))).shape
        torch.Size([1, 3, 8])
    """

    def __init__(self, dim: int, *, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(dim, dim, bias=False)
        self.kv = nn.Linear(dim, 2 * dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)

    def keys_values(self, source_BSD: Tensor) -> tuple[Tensor, Tensor]:
        """What the source is asked for and what it answers: (B, S, D) -> (B, H, S, d) twice."""
        B, S, D = source_BSD.shape
        k, v = self.kv(source_BSD).view(B, S, 2, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)
        return k, v

    def forward(self, x_BLD: Tensor, keys_values: tuple[Tensor, Tensor], *, mask_BS: Tensor | None = None) -> Tensor:
        """(B, L, D) -> (B, L, D); no token attends to one of the source whose mask is False."""
        q_BHLd = self.q(x_BLD).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        seen = None if mask_BS is None else mask_BS[:, None, None, :]
        y_BHLd = F.scaled_dot_product_attention(q_BHLd, *keys_values, attn_mask=seen)
        mixed: Tensor = self.out(y_BHLd.transpose(1, 2).flatten(2))
        return mixed


class DecoderBlock(nn.Module):
    """Causal attention, attention to the source, then a mixture or a dense MLP, each on a normalised residual branch.

    Args:
        config: sizes.
        number: of the block, from 0.

    Example:
        >>> type(DecoderBlock(TranslatorConfig(moe_every=2), 0).feed_forward).__name__
        'MLP'
    """

    def __init__(self, config: TranslatorConfig, number: int) -> None:
        super().__init__()
        self.number = number
        self.attention_norm = RMSNorm(config.dim)
        self.attention = Attention(config)
        self.cross_norm = RMSNorm(config.dim)
        self.cross = CrossAttention(config.dim, heads=config.heads)
        self.feed_forward_norm = RMSNorm(config.dim)
        self.feed_forward = config.feed_forward(number)

    def forward(
        self,
        x_BLD: Tensor,
        memory: Memory,
        *,
        rotary: tuple[Tensor, Tensor],
        context: Tensor,
        mask_BL: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """(B, L, D) -> (B, L, D); for arguments see `Translator.decode`.

        With several rows for each of the memory's, those stand together, and each has one token.
        """
        x_BLD = x_BLD + self.attention(self.attention_norm(x_BLD), rotary, cache=cache, block=self.number)
        keys_values = memory.keys_values[self.number]
        # Hypotheses of one source are so many questions to it, whose keys then need no copy for each.
        asking = self.cross_norm(x_BLD).view(len(keys_values[0]), -1, x_BLD.shape[2])
        x_BLD = x_BLD + self.cross(asking, keys_values, mask_BS=memory.mask_BS).view_as(x_BLD)
        return x_BLD + feed(self.feed_forward, self.feed_forward_norm(x_BLD), context=context, mask_BL=mask_BL)


class Translator(nn.Module):
    """An encoder that sees the whole source, and a decoder that writes the target token by token.

    Both embed tokens by the matrix that gives the logits, add a learned vector for the place, and have mixtures in the
    same blocks. Padding attends to nothing that counts, and is routed nowhere. Routers that need a context are given
    the token ids.

    Source: Vaswani et al. 2017; mixtures in both sides: Lepikhin et al. 2020 (GShard).

    Args:
        config: the sizes.

    Raises:
        UserError: in `forward`, a text longer than the context.

    Warns:
        UserWarning: a router in the decoder that is not causal (`ExpertChoice`, `Soft`).

    Example:
        >>> ids = torch.zeros(2, 5, dtype=torch.int64)
        >>> Translator(TranslatorConfig())(ids, ids[:, :3]).shape
        torch.Size([2, 3, 257])
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, config: TranslatorConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.dim)
        self.source_position = nn.Parameter(torch.empty(config.context, config.dim))
        self.target_position = nn.Parameter(torch.empty(config.context, config.dim))
        self.encoder = nn.ModuleList(EncoderBlock(config, number) for number in range(config.layers))
        self.encoder_norm = RMSNorm(config.dim)
        self.decoder = nn.ModuleList(DecoderBlock(config, number) for number in range(config.layers))
        warn_of_the_future(self.decoder)
        self.decoder_norm = RMSNorm(config.dim)
        self.head = nn.Linear(config.dim, config.vocab_size, bias=False)
        self._initialise()

    def reset_parameters(self) -> None:
        """Set everything afresh, after `to_empty` for instance."""
        reset_parts(self)
        self._initialise()

    def _initialise(self) -> None:
        """What the parts do not know of one another."""
        config, device = self.config, self.embedding.weight.device
        cos, sin = rotary_tables(config.context, config.dim // config.heads)
        self.register_buffer("cos", cos.to(device), persistent=False)
        self.register_buffer("sin", sin.to(device), persistent=False)
        nn.init.normal_(self.embedding.weight, std=_STD)
        nn.init.normal_(self.head.weight, std=_STD)
        # Places begin as sinusoids (section 3.5): near ones are alike and shifts are turns before anything is learned.
        # They are as large as the tokens.
        sinusoids = torch.cat(rotary_tables(config.context, config.dim), dim=1) * math.sqrt(2 * config.dim) * _STD
        with torch.no_grad():
            self.source_position.copy_(sinusoids)
            self.target_position.copy_(sinusoids)
        for block in (*self.encoder, *self.decoder):
            assert isinstance(block, EncoderBlock | DecoderBlock)
            nn.init.zeros_(block.attention.out.weight)  # adds nothing until it has learned to
            if isinstance(block, DecoderBlock):
                # Questions begin like keys, so that each token first looks at what stands at its own place.
                with torch.no_grad():
                    block.cross.q.weight.mul_(_SHARPER)
                    block.cross.kv.weight[: config.dim].copy_(block.cross.q.weight)
        if config.tie_weights:
            self.head.weight = self.embedding.weight

    def new_cache(self, batch_size: int) -> KVCache:
        """An empty cache of so many texts, for `decode`."""
        weight = self.embedding.weight
        return KVCache(self.config, batch_size=batch_size, device=weight.device, dtype=weight.dtype)

    def encode(self, source_BS: Tensor, *, mask_BS: Tensor | None = None) -> Memory:
        """Read the source, whose padding is False in the mask."""
        length = self._fitting(source_BS.shape[1])
        x_BSD = self._embedded(source_BS) + self.source_position[:length]
        for block in self.encoder:
            x_BSD = block(x_BSD, context=source_BS, mask_BL=mask_BS)
        x_BSD = self.encoder_norm(x_BSD)
        blocks = (block for block in self.decoder if isinstance(block, DecoderBlock))
        return Memory(tuple(block.cross.keys_values(x_BSD) for block in blocks), mask_BS)

    def decode(
        self, ids_BL: Tensor, memory: Memory, *, mask_BL: Tensor | None = None, cache: KVCache | None = None
    ) -> Tensor:
        """Target ids (B, L) to what `head` makes logits of, (B, L, D).

        Args:
            ids_BL: behind those in the cache, if there is one. Padding comes last.
            memory: of the source; its rows are those of the ids, or, for one token at a time, the ids have the same
                number of rows for each of the memory's, one after the other.
            mask_BL: False for padding.
            cache: of `new_cache`.
        """
        start = 0 if cache is None else cache.length
        end = self._fitting(start + ids_BL.shape[1])
        rotary = self.cos[start:end], self.sin[start:end]
        x_BLD = self._embedded(ids_BL) + self.target_position[start:end]
        for block in self.decoder:
            x_BLD = block(x_BLD, memory, rotary=rotary, context=ids_BL, mask_BL=mask_BL, cache=cache)
        if cache is not None:
            cache.length = end
        normed: Tensor = self.decoder_norm(x_BLD)
        return normed

    def forward(
        self,
        source_BS: Tensor,
        ids_BL: Tensor,
        *,
        source_mask_BS: Tensor | None = None,
        mask_BL: Tensor | None = None,
        targets_BL: Tensor | None = None,
        smoothing: float = 0.0,
    ) -> Tensor:
        """Source (B, S) and the target so far (B, L) to the logits of what follows each of its tokens, (B, L, V).

        With the tokens that do follow, int64 (B, L): two means over those whose mask is True, (2,), see
        `smoothed_cross_entropy`; no one then holds all logits at once.
        """
        x_BLD = self.decode(ids_BL, self.encode(source_BS, mask_BS=source_mask_BS), mask_BL=mask_BL)
        if targets_BL is None:
            logits_BLV: Tensor = self.head(x_BLD)
            return logits_BLV
        mask_BL = torch.ones_like(targets_BL, dtype=torch.bool) if mask_BL is None else mask_BL
        return smoothed_cross_entropy(x_BLD[mask_BL], self.head, targets_BL[mask_BL], smoothing=smoothing)

    def _embedded(self, ids_BL: Tensor) -> Tensor:
        """Tokens times the root of the width (section 3.4), or random blocks would drown out what word it is."""
        x_BLD: Tensor = self.embedding(ids_BL) * math.sqrt(self.config.dim)
        return x_BLD

    def _fitting(self, length: int) -> int:
        if length > self.config.context:
            raise UserError(f"expected texts of at most {self.config.context} tokens, got {length}; cut them")
        return length


def smoothed_cross_entropy(x_TD: Tensor, head: nn.Linear, target_T: Tensor, *, smoothing: float) -> Tensor:
    """Cross-entropy with label smoothing, and without: two means over tokens, (2,).

    With z the logits, t the target and e the smoothing, (1 - e) (-log p_t) + e / V * sum_v (-log p_v) is
    -log p_t + e (z_t - mean_v z_v), and that mean needs one product with the mean row of the matrix: smoothing costs
    no pass over the logits.

    Source: Szegedy et al. 2016, section 7.

    Args:
        x_TD: (T, D) with at least one token.
        head: the output layer, D -> V, a matrix without bias.
        target_T: int64 (T,), below V.
        smoothing: e, the share of the target that is spread evenly over all tokens.

    Example:
        >>> head = nn.Linear(2, 4, bias=False)
        >>> smoothed_cross_entropy(torch.zeros(3, 2), head, torch.tensor([0, 1, 3]), smoothing=0.1).detach()
        tensor([1.3863, 1.3863])
    """
    nats = linear_cross_entropy(x_TD, head, target_T)
    if not smoothing:
        return torch.stack([nats, nats.detach()])
    rows_TD = head.weight[target_T] - head.weight.mean(0)
    ahead = (x_TD.float() * rows_TD.float()).sum(1).mean()
    return torch.stack([nats + smoothing * ahead, nats.detach()])
