"""A Transformer that draws images of a wanted class by flow matching, with mixture-of-experts blocks (DiT-MoE).

Shapes here: B images, C channels, H their height and width, L patches, D model width.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # torch's own customary name

from mixtura.errors import UserError
from mixtura.models.blocks import PatchesConfig, SelfAttention, feed, reset_parts, run_block
from mixtura.models.fused import RMSNorm
from mixtura.models.patches import check_images, images_of, patches_of

TIME_SCALE = 1000.0  # times from 0 to 1 are spread over as many steps as diffusion models have, for their sinusoids


@dataclass(frozen=True, kw_only=True)
class DiTConfig(PatchesConfig):
    """Sizes of a DiT and of its mixtures.

    Raises:
        UserError: an odd width, and what `PatchesConfig` refuses.

    Example:
        >>> DiTConfig(image_size=8, patch_size=2).patches
        16
    """

    layers: int = 4
    """Transformer blocks."""
    num_experts: int = 8
    """E, experts of each mixture; 0: a dense model."""
    moe_every: int = 2
    """Every n-th block is a mixture, counted so that the last of each n is one; the others are dense."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dim % 2:
            raise UserError(f"expected an even dim, got {self.dim}")


def time_features(time_B: Tensor, dim: int) -> Tensor:
    """Sines and cosines of times from 0 to 1: (B, dim).

    Source: Peebles and Xie 2023 (DiT), section 3.2; the frequencies of Vaswani et al. 2017.

    Example:
        >>> time_features(torch.zeros(1), 4).tolist()
        [[1.0, 1.0, 0.0, 0.0]]
    """
    half = dim // 2
    frequency = torch.exp(-math.log(10_000) * torch.arange(half, device=time_B.device) / half)
    angle = TIME_SCALE * time_B.float()[:, None] * frequency
    return torch.cat([angle.cos(), angle.sin()], dim=1)


class DiTBlock(nn.Module):
    """Attention, then a mixture or a dense MLP; the condition scales, shifts and gates both branches (adaLN-zero).

    Source: Peebles and Xie 2023, section 3.2.

    Example:
        >>> block = DiTBlock(DiTConfig(dim=8, heads=2, hidden=8), 0)
        >>> x = torch.randn(2, 3, 8)
        >>> torch.equal(block(x, condition=torch.randn(2, 8), context=torch.zeros(2, 3)), x)  # it starts as nothing
        True
    """

    def __init__(self, config: DiTConfig, number: int) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.dim)
        self.attention = SelfAttention(config.dim, heads=config.heads)
        self.feed_forward_norm = RMSNorm(config.dim)
        self.feed_forward = config.feed_forward(number)
        self.modulation = nn.Linear(config.dim, 6 * config.dim)
        self.start_as_nothing()

    def start_as_nothing(self) -> None:
        """Close both gates."""
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x_BLD: Tensor, *, condition: Tensor, context: Tensor) -> Tensor:
        """(B, L, D) and a condition (B, D) -> (B, L, D); the context, (B, L), is for routers that need one."""
        shift, scale, gate, shift_2, scale_2, gate_2 = self.modulation(F.silu(condition)).unsqueeze(1).chunk(6, dim=-1)
        x_BLD = x_BLD + gate * self.attention(self.attention_norm(x_BLD) * (1 + scale) + shift)
        y_BLD = self.feed_forward_norm(x_BLD) * (1 + scale_2) + shift_2
        mixed_BLD: Tensor = x_BLD + gate_2 * feed(self.feed_forward, y_BLD, context=context)
        return mixed_BLD


class DiT(nn.Module):
    """From noisy images, times and classes to the velocity from noise to image.

    Class `num_classes` stands for none; training with some of those lets `sample` strengthen the class.

    Args:
        config: the sizes.
        recompute_interval: recompute the activations of every n-th block in the backward pass; 0: keep all.

    Shapes: images float (B, C, H, H), times (B,) from 0 (noise) to 1 (image), classes int64 (B,) -> (B, C, H, H).

    Raises:
        UserError: in `forward`, images of another shape.

    Example:
        >>> model = DiT(DiTConfig(image_size=8))
        >>> model(torch.zeros(2, 1, 8, 8), torch.zeros(2), torch.tensor([3, 10])).shape
        torch.Size([2, 1, 8, 8])
    """

    def __init__(self, config: DiTConfig, *, recompute_interval: int = 0) -> None:
        super().__init__()
        self.config, self.recompute_interval = config, recompute_interval
        width = config.channels * config.patch_size**2
        self.embedding = nn.Linear(width, config.dim)
        self.position = nn.Parameter(torch.empty(config.patches, config.dim))
        self.time = nn.Sequential(nn.Linear(config.dim, config.dim), nn.SiLU(), nn.Linear(config.dim, config.dim))
        self.label = nn.Embedding(config.num_classes + 1, config.dim)
        self.blocks = nn.ModuleList(DiTBlock(config, number) for number in range(config.layers))
        self.norm = RMSNorm(config.dim)
        self.head = nn.Linear(config.dim, width)
        self._initialise()

    def reset_parameters(self) -> None:
        """Set everything afresh, after `to_empty` for instance."""
        reset_parts(self)
        self._initialise()

    def _initialise(self) -> None:
        """What the parts do not know of one another."""
        nn.init.normal_(self.position, std=0.02)
        nn.init.normal_(self.label.weight, std=0.02)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        for block in self.blocks:
            cast("DiTBlock", block).start_as_nothing()

    def forward(self, images: Tensor, time_B: Tensor, label_B: Tensor) -> Tensor:
        """The velocity at each image: (B, C, H, H)."""
        c = self.config
        check_images(images, channels=c.channels, size=c.image_size)
        x_BLD = self.embedding(patches_of(images, c.patch_size)) + self.position
        condition = self.time(time_features(time_B, c.dim).to(x_BLD.dtype)) + self.label(label_B)
        place_BL = torch.arange(c.patches, device=images.device).expand(images.shape[0], -1)
        for number, block in enumerate(self.blocks):
            bound = partial(block, x_BLD, condition=condition, context=place_BL)
            x_BLD = run_block(bound, number, recompute_interval=self.recompute_interval)
        return images_of(self.head(self.norm(x_BLD)), size=c.patch_size, channels=c.channels)


def flow_loss(model: nn.Module, images: Tensor, label_B: Tensor, *, time_B: Tensor, noise: Tensor) -> Tensor:
    """Mean squared error of the velocity, of each image: (B,).

    Between noise and image lies (1 - t) noise + t image, whose velocity is image - noise. Source: Lipman et al. 2023
    (flow matching), section 4.1, without their smallest sigma; Liu et al. 2023 (rectified flow), equation 1.

    Args:
        model: a `DiT`.
        images: (B, C, H, H) from -1 to 1.
        label_B: int64 (B,).
        time_B: (B,) from 0 to 1.
        noise: standard normal, shaped like the images.

    Example:
        >>> model, x = DiT(DiTConfig(image_size=8)), torch.ones(2, 1, 8, 8)  # a new model says 0
        >>> flow_loss(model, x, torch.zeros(2, dtype=torch.long), time_B=torch.zeros(2), noise=0 * x).tolist()
        [1.0, 1.0]
    """
    t = time_B.view(-1, 1, 1, 1)
    velocity: Tensor = model((1 - t) * noise + t * images, time_B, label_B)
    return (velocity - (images - noise)).square().flatten(1).mean(1)


@torch.no_grad()
def sample(
    model: DiT, label_B: Tensor, *, steps: int = 25, guidance: float = 1.0, generator: torch.Generator | None = None
) -> Tensor:
    """Draw an image of each class, by Heun's method from noise at time 0 to the image at time 1: (B, C, H, H).

    Args:
        model: in evaluation mode.
        label_B: int64 (B,).
        steps: of equal length, with two evaluations each.
        guidance: how far to go from the velocity without a class to the one with it (Ho and Salimans 2022,
            equation 6); 1: just with it.
        generator: of the noise.

    Returns:
        Images from -1 to 1.

    Raises:
        UserError: no steps.

    Example:
        >>> sample(DiT(DiTConfig(image_size=8)).eval(), torch.tensor([0, 1, 2]), steps=2).shape
        torch.Size([3, 1, 8, 8])
    """
    if steps < 1:
        raise UserError(f"expected steps of at least 1, got {steps}")
    c = model.config
    shape = (len(label_B), c.channels, c.image_size, c.image_size)
    x = torch.randn(shape, generator=generator, device=label_B.device)

    def velocity(x: Tensor, time: float) -> Tensor:
        time_B = torch.full((len(x),), time, device=x.device)
        v: Tensor = model(x, time_B, label_B)
        if guidance == 1:
            return v
        free: Tensor = model(x, time_B, torch.full_like(label_B, c.num_classes))
        return free + guidance * (v - free)

    for step in range(steps):
        v = velocity(x, step / steps)
        x = x + (v + velocity(x + v / steps, (step + 1) / steps)) / (2 * steps)
    return x.clamp(-1, 1)


def frechet_distance(a_ND: Tensor, b_ND: Tensor) -> float:
    """How far apart two sets of features are as normal distributions: |mean|^2 + tr(A + B - 2 (A B)^(1/2)).

    Source: Heusel et al. 2017, equation 6.

    Args:
        a_ND: features of one set.
        b_ND: of the other.

    Raises:
        UserError: fewer than two rows.

    Example:
        >>> x = torch.randn(500, 3)
        >>> round(frechet_distance(x, x + torch.tensor([3.0, 4.0, 0.0])), 3)
        25.0
    """
    for rows in (a_ND, b_ND):
        if len(rows) < 2:
            raise UserError(f"expected at least 2 rows of features, got {len(rows)}")
    a, b = a_ND.double(), b_ND.double()
    first, second = torch.cov(a.T), torch.cov(b.T)
    # tr (A B)^(1/2) is that of the symmetric A^(1/2) B A^(1/2).
    values, vectors = torch.linalg.eigh(first)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    shared = torch.linalg.eigvalsh(root @ second @ root).clamp(min=0).sqrt().sum()
    return float((a.mean(0) - b.mean(0)).square().sum() + first.trace() + second.trace() - 2 * shared)
