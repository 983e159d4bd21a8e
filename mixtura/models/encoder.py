"""A Transformer encoder with mixture-of-experts blocks that tells texts apart.

Shapes here: V tokens of the vocabulary, L tokens of the longest text.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from mixtura.errors import UserError
from mixtura.models.blocks import Block, BlocksConfig, reset_parts, run_block
from mixtura.models.fused import RMSNorm


@dataclass(frozen=True, kw_only=True)
class EncoderConfig(BlocksConfig):
    """Sizes of an encoder and of its mixtures.

    Raises:
        UserError: a size below 1, fewer than two classes, and what `BlocksConfig` refuses.

    Example:
        >>> EncoderConfig(num_classes=3, num_experts=8).moe().num_experts
        8
    """

    vocab_size: int = 257
    """V, tokens of the vocabulary; `mixtura train` takes it from the data."""
    context: int = 128
    """Longest text, in tokens; `mixtura train` takes it from the data."""
    num_classes: int = 2
    """Classes; `mixtura train` takes their number from the data."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("vocab_size", 1), ("context", 1), ("num_classes", 2)):
            if getattr(self, name) < least:
                raise UserError(f"expected {name} of at least {least}, got {getattr(self, name)}")


class Encoder(nn.Module):
    """A text classifier: tokens and places, blocks, the mean of the tokens, logits.

    Routers that need a context are given the token ids.

    Args:
        config: the sizes.
        recompute_interval: recompute the activations of every n-th block in the backward pass; 0: keep all.

    Shapes: ids int64 (B, L), mask bool (B, L), False for padding -> logits (B, classes).

    Raises:
        UserError: in `forward`, texts longer than the context.

    Example:
        >>> Encoder(EncoderConfig(num_classes=3))(torch.zeros(2, 5, dtype=torch.int64)).shape
        torch.Size([2, 3])
    """

    def __init__(self, config: EncoderConfig, *, recompute_interval: int = 0) -> None:
        super().__init__()
        self.config, self.recompute_interval = config, recompute_interval
        self.embedding = nn.Embedding(config.vocab_size, config.dim)
        self.position = nn.Parameter(torch.empty(config.context, config.dim))
        self.blocks = nn.ModuleList(Block(config, number) for number in range(config.layers))
        self.norm = RMSNorm(config.dim)
        self.head = nn.Linear(config.dim, config.num_classes)
        self._initialise()

    def reset_parameters(self) -> None:
        """Set everything afresh, after `to_empty` for instance."""
        reset_parts(self)
        self._initialise()

    def _initialise(self) -> None:
        """What the parts do not know of one another."""
        nn.init.normal_(self.embedding.weight, std=0.02)
        nn.init.normal_(self.position, std=0.02)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, ids_BL: Tensor, *, mask_BL: Tensor | None = None) -> Tensor:
        """Ids (B, L) to logits (B, classes); a text's padding, where the mask is False, changes nothing."""
        length = ids_BL.shape[1]
        if length > self.config.context:
            raise UserError(f"expected texts of at most {self.config.context} tokens, got {length}; cut them")
        x_BLD = self.embedding(ids_BL) + self.position[:length]
        for number, block in enumerate(self.blocks):
            bound = partial(block, x_BLD, context=ids_BL, mask_BL=mask_BL)
            x_BLD = run_block(bound, number, recompute_interval=self.recompute_interval)
        x_BLD = self.norm(x_BLD)
        if mask_BL is None:
            mean_BD = x_BLD.mean(1)
        else:
            share_BL = mask_BL / mask_BL.sum(1, keepdim=True).clamp(min=1)
            mean_BD = torch.einsum("bld,bl->bd", x_BLD, share_BL.to(x_BLD.dtype))
        logits: Tensor = self.head(mean_BD)
        return logits
