"""A Transformer over the patches of small images (ViT), with mixture-of-experts blocks as V-MoE has them.

Shapes here: B images, C channels, H and W their height and width (equal), P the side of a patch, L = (H / P)^2 patches.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor, nn

from mixtura.config import MoEConfig
from mixtura.dispatch import Capacity
from mixtura.errors import UserError
from mixtura.models.blocks import Block, PatchesConfig, loss_coefficients, reset_parts, run_block
from mixtura.models.fused import RMSNorm
from mixtura.models.patches import check_images, patches_of

V_MOE = {"order": "softmax_topk", "noise": "1/E"}


@dataclass(frozen=True, kw_only=True)
class ViTConfig(PatchesConfig):
    """Sizes of a ViT and of its mixtures; the defaults of these are those of V-MoE.

    `router="soft"` with `k` = `num_experts` is Soft MoE; `router="expert_choice"` lets experts choose patches. Both
    need neither capacity nor losses. `policy="priority"` is batch-prioritised routing: when an expert is full, the
    patches with the largest weights keep their places.

    Source: Dosovitskiy et al. 2020 (ViT); Riquelme et al. 2021 (V-MoE), section 2; Puigcerver et al. 2023 (Soft MoE).

    Raises:
        UserError: fewer than two classes, a negative number, and what `PatchesConfig` refuses.

    Example:
        >>> config = ViTConfig(layers=6, moe_last=2)
        >>> [block for block in range(6) if config.is_moe(block)], config.patches
        ([3, 5], 49)
    """

    dim: int = 48
    """D, model width."""
    layers: int = 4
    """Transformer blocks."""
    heads: int = 3
    """H, attention heads; they divide the width."""
    hidden: int = 96
    """F, hidden width of a dense feed-forward block."""
    num_experts: int = 8
    """E, experts of each mixture; 0: a dense model."""
    k: int = 2
    """K, experts per patch."""
    expert_hidden: int = 48
    """Hidden width of each expert; hidden / k gives as many active parameters as dense blocks have; 0: as hidden."""
    moe_every: int = 2
    """Every n-th block is a mixture, counted so that the last of each n is one; the others are dense."""
    moe_last: int = 0
    """In place of moe_every: the last n of the odd-numbered blocks, counted from 0; 0: as moe_every says."""
    router: str = "topk"
    """A name in mixtura.routers.ROUTERS."""
    router_options: Mapping[str, int | float | bool | str] = field(default_factory=dict)
    """Further arguments of the router; none with router="topk": V-MoE's order and noise."""
    capacity_factor: float | None = 1.05
    """Rows per expert as a multiple of the even share; None: dropless."""
    eval_capacity_factor: float | None = None
    """The same in evaluation; None: dropless."""
    losses: Mapping[str, float] = field(default_factory=lambda: loss_coefficients({"importance": 5e-3, "load": 5e-3}))
    """Losses of each mixture and their coefficients; 0: none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.moe_last < 0:
            raise UserError(f"expected moe_last of at least 0, got {self.moe_last}")
        if self.num_classes < 2:
            raise UserError(f"expected num_classes of at least 2, got {self.num_classes}")

    def is_moe(self, block: int) -> bool:
        """Whether block number `block`, from 0, holds a mixture."""
        if not self.moe_last:
            return super().is_moe(block)
        odd = range(1, self.layers, 2)
        return self.num_experts > 0 and block in odd[-self.moe_last :]

    def moe(self) -> MoEConfig:
        """The recipe of each mixture."""
        options = self.router_options or (V_MOE if self.router == "topk" else {})
        eval_capacity = Capacity(factor=self.eval_capacity_factor)
        return replace(super().moe(), router_options=options, eval_capacity=eval_capacity)


class ViT(nn.Module):
    """An image classifier: patches, blocks, the mean of the patches, logits.

    Routers that need a context are given each patch's place in its image, from 0 to L - 1.

    Args:
        config: the sizes.
        recompute_interval: recompute the activations of every n-th block in the backward pass; 0: keep all.

    Shapes: images float (B, C, H, H) -> logits (B, classes).

    Raises:
        UserError: in `forward`, images of another shape.

    Example:
        >>> ViT(ViTConfig())(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """

    def __init__(self, config: ViTConfig, *, recompute_interval: int = 0) -> None:
        super().__init__()
        self.config, self.recompute_interval = config, recompute_interval
        self.embedding = nn.Linear(config.channels * config.patch_size**2, config.dim)
        self.position = nn.Parameter(torch.empty(config.patches, config.dim))
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
        nn.init.normal_(self.position, std=0.5)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, H) to logits (B, classes)."""
        logits: Tensor = self.head(self.features(images))
        return logits

    def features(self, images: Tensor) -> Tensor:
        """What the last layer sees of each image: (B, C, H, H) -> (B, D)."""
        c = self.config
        check_images(images, channels=c.channels, size=c.image_size)
        x_BLD = self.embedding(patches_of(images, c.patch_size)) + self.position
        place_BL = torch.arange(c.patches, device=images.device).expand(images.shape[0], -1)
        for number, block in enumerate(self.blocks):
            x_BLD = run_block(
                partial(block, x_BLD, context=place_BL), number, recompute_interval=self.recompute_interval
            )
        mean_BD: Tensor = self.norm(x_BLD).mean(1)
        return mean_BD
