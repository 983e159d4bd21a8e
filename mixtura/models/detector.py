"""A small single-stage detector without anchors: each cell of its maps is a token, seen by two mixtures.

One mixture chooses how far a cell looks around (convolutions of different dilation as experts), the other is the head
over the cells of all maps. Boxes are those of FCOS's family (Tian et al. 2019), written as a centre and a size.

Shapes here: B images, C channels, H and W their height and width, L cells of all maps of an image, M objects.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # torch's own customary name

from mixtura.config import MoEConfig
from mixtura.errors import UserError
from mixtura.experts import MLP, ModuleExperts
from mixtura.layer import MoE
from mixtura.models.blocks import feed, loss_coefficients, reset_parts
from mixtura.models.fused import RMSNorm
from mixtura.models.objects import STRIDES, Grid, Output
from mixtura.routers.topk import TopK

_RARE = 0.01  # the share of cells with an object that the head begins with
_LARGEST = 6.0  # logarithm of the largest half side, in cells: no overflow from a wild guess
_GROUPS = 8


@dataclass(frozen=True, kw_only=True)
class DetectorConfig:
    """Sizes of a detector and of its mixtures.

    Raises:
        UserError: a size below 1, a width that the norms' groups do not divide, dilations below 1 or none.

    Example:
        >>> DetectorConfig(num_experts=4).moe().num_experts
        4
    """

    channels: int = 1
    """1: grey, 3: colours; `mixtura train` takes it from the data."""
    num_classes: int = 10
    """Classes; `mixtura train` takes it from the data."""
    width: int = 24
    """Channels of the first convolution."""
    dim: int = 48
    """D, channels of the maps and width of the head; a multiple of 8, as width."""
    hidden: int = 96
    """F, hidden width of each expert of the head, or of the dense head."""
    num_experts: int = 8
    """E, experts of the head; 0: a dense model, whose cells all look around equally far too."""
    k: int = 1
    """K, experts of the head per cell."""
    dilations: tuple[int, ...] = (1, 2, 3)
    """How far apart the 3 x 3 cells lie that each expert of the other mixture sees; the dense model has the first."""
    router: str = "switch"
    """Router of the head, a name in mixtura.routers.ROUTERS."""
    router_options: Mapping[str, int | float | bool | str] = field(default_factory=dict)
    """Further arguments of that router."""
    activation: str = "gelu"
    """Of the head: relu, gelu, gelu_tanh, silu, swiglu, geglu, geglu_tanh or clamped_swiglu."""
    capacity_factor: float | None = None
    """Rows per expert of the head as a multiple of the even share; None: dropless."""
    losses: Mapping[str, float] = field(default_factory=lambda: loss_coefficients({"load_balance": 1e-2, "z": 1e-3}))
    """Losses of each mixture and their coefficients; 0: none."""

    def __post_init__(self) -> None:
        for name in ("channels", "num_classes", "width", "dim", "hidden", "k"):
            if getattr(self, name) < 1:
                raise UserError(f"expected {name} of at least 1, got {getattr(self, name)}")
        for name in ("width", "dim"):
            if getattr(self, name) % _GROUPS:
                raise UserError(f"expected {name} that is a multiple of {_GROUPS}, got {getattr(self, name)}")
        if self.num_experts < 0:
            raise UserError(f"expected num_experts of at least 0 (0: dense), got {self.num_experts}")
        if not self.dilations or min(self.dilations) < 1:
            raise UserError(f"expected dilations of at least 1, got {self.dilations or 'none'}")

    def used_losses(self) -> dict[str, float]:
        """Those whose coefficient is not 0.

        Example:
            >>> DetectorConfig().used_losses()
            {'load_balance': 0.01, 'z': 0.001}
        """
        return {name: coefficient for name, coefficient in self.losses.items() if coefficient}

    def moe(self) -> MoEConfig:
        """The recipe of the head's mixture."""
        return MoEConfig(
            dim=self.dim,
            hidden=self.hidden,
            num_experts=self.num_experts,
            k=self.k,
            router=self.router,
            router_options=self.router_options,
            activation=self.activation,
            capacity_factor=self.capacity_factor,
            losses=self.used_losses(),
        )

    def head(self) -> nn.Module:
        """The head's mixture, or one dense MLP with as many active parameters."""
        if self.num_experts:
            return self.moe().build()
        return MLP(dim=self.dim, hidden=self.k * self.hidden, activation=self.activation)

    def around(self) -> nn.Module:
        """What looks around each cell."""
        if not self.num_experts:
            return Around(self.dim // 2, self.dim, dilation=self.dilations[0])
        return AroundMixture(self.dim // 2, self.dim, dilations=self.dilations, losses=self.used_losses())


def windows(x: Tensor, *, dilation: int) -> Tensor:
    """The 3 x 3 cells around each cell, so far apart; beyond the border 0: (B, C, H, W) -> (B, H * W, 9 * C).

    Example:
        >>> windows(torch.arange(9.0).view(1, 1, 3, 3), dilation=1)[0, 0].tolist()
        [0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 3.0, 4.0]
    """
    return F.unfold(x, 3, dilation=dilation, padding=dilation).transpose(1, 2)


class Around(nn.Module):
    """A 3 x 3 convolution over several maps: (B, C, H, W) each -> the cells of all, (B, L, D).

    Args:
        channels: C.
        out_channels: D.
        dilation: how far apart the 3 x 3 cells lie.

    Example:
        >>> Around(4, 8, dilation=1)([torch.zeros(2, 4, 4, 4), torch.zeros(2, 4, 2, 2)]).shape
        torch.Size([2, 20, 8])
    """

    def __init__(self, channels: int, out_channels: int, *, dilation: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out_channels, 3, dilation=dilation, padding=dilation, bias=False)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps to cells."""
        return cells([self.conv(x) for x in maps])


class _FirstWindow(nn.Module):
    """A gate that sees the nearest window of each cell: (T, scales * 9 * C) -> (T, E)."""

    def __init__(self, width: int, *, num_experts: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, num_experts, bias=False)

    def reset_parameters(self) -> None:
        self.linear.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.linear(x[:, : self.linear.in_features])
        return scores


class _OneWindow(nn.Module):
    """An expert that convolves the window of its own dilation: (n, scales, 9 * C) -> (n, D)."""

    def __init__(self, channels: int, out_channels: int, *, place: int) -> None:
        super().__init__()
        self.place, self.linear = place, nn.Linear(9 * channels, out_channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(x[:, self.place])
        return y


class AroundMixture(nn.Module):
    """3 x 3 convolutions of several dilations as experts of `MoE`; each cell passes the one that a gate chooses.

    A token is a cell with its windows of every dilation, so that experts of any reach fit; the gate sees the nearest.
    All experts have as many parameters as one plain convolution, whatever they reach.

    Args:
        channels: C.
        out_channels: D.
        dilations: of the experts.
        losses: see `MoE`.

    Shapes: (B, C, H, W) for each map -> (B, L, D).

    Example:
        >>> AroundMixture(4, 8, dilations=(1, 2))([torch.zeros(2, 4, 4, 4), torch.zeros(2, 4, 2, 2)]).shape
        torch.Size([2, 20, 8])
    """

    def __init__(
        self,
        channels: int,
        out_channels: int,
        *,
        dilations: Sequence[int],
        losses: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        self.dilations, number = tuple(dilations), len(dilations)
        gate = _FirstWindow(9 * channels, num_experts=number)
        self.moe = MoE(
            router=TopK(number * 9 * channels, number, 1, order="softmax_topk", gate=gate),
            experts=ModuleExperts(
                [_OneWindow(channels, out_channels, place=place) for place in range(number)],
                row_shape=(number, 9 * channels),
            ),
            losses=losses,
        )

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps to cells."""
        per_map = [torch.stack([windows(x, dilation=d) for d in self.dilations], dim=2) for x in maps]
        y: Tensor = self.moe(torch.cat(per_map, dim=1))  # (B, L, scales, 9 * C) -> (B, L, D)
        return y


def cells(maps: Sequence[Tensor]) -> Tensor:
    """The cells of all maps, row by row, one map after the other: (B, C, H, W) each -> (B, L, C).

    Example:
        >>> cells([torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 2, 2)]).shape
        torch.Size([1, 20, 3])
    """
    return torch.cat([x.flatten(2).transpose(1, 2) for x in maps], dim=1)


class _Step(nn.Sequential):
    """A 3 x 3 convolution, its norm and activation."""

    def __init__(self, channels: int, out_channels: int, *, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(channels, out_channels, 3, stride=stride, padding=1, bias=False),
            nn.GroupNorm(_GROUPS, out_channels),
            nn.ReLU(),
        )


class Detector(nn.Module):
    """Convolutions down to maps of two strides, the coarse one added to the fine one (FPN), a look around, the head.

    Each cell says for every class whether an object's centre is near, and where the object's box is: its centre as an
    offset and the logarithm of its size, both in cells.

    Args:
        config: the sizes.

    Shapes: images float (B, C, H, W), H and W multiples of 8 -> `Output` with L = H W / 16 + H W / 64.

    Raises:
        UserError: in `forward`, images of another shape.

    Example:
        >>> output = Detector(DetectorConfig())(torch.zeros(2, 1, 32, 48))
        >>> output.logits.shape, output.boxes.shape
        (torch.Size([2, 120, 10]), torch.Size([2, 120, 4]))
    """

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        self.config = config
        width, dim = config.width, config.dim
        self.stem = _Step(config.channels, width, stride=2)
        self.fine = nn.Sequential(_Step(width, 2 * width, stride=2), _Step(2 * width, 2 * width))
        self.coarse = nn.Sequential(_Step(2 * width, 4 * width, stride=2), _Step(4 * width, 4 * width))
        self.lateral = nn.ModuleList(nn.Conv2d(channels, dim, 1) for channels in (2 * width, 4 * width))
        self.map_norms = nn.ModuleList(nn.GroupNorm(_GROUPS, dim) for _ in STRIDES)
        self.level = nn.Parameter(torch.empty(len(STRIDES), dim))
        self.narrow = nn.Conv2d(dim, dim // 2, 1, bias=False)
        self.around = config.around()
        self.norm = RMSNorm(dim)
        self.head = config.head()
        self.out_norm = RMSNorm(dim)
        self.out = nn.Linear(dim, config.num_classes + 4)
        self._initialise()

    def reset_parameters(self) -> None:
        """Set everything afresh, after `to_empty` for instance."""
        reset_parts(self)
        self._initialise()

    def _initialise(self) -> None:
        """What the parts do not know of one another; objects are rare at first (Lin et al. 2017, 4.1)."""
        nn.init.normal_(self.level, std=0.02)
        nn.init.normal_(self.out.weight, std=0.01)
        nn.init.zeros_(self.out.bias)
        nn.init.constant_(self.out.bias[: self.config.num_classes], math.log(_RARE / (1 - _RARE)))

    def forward(self, images: Tensor) -> Output:
        """Images (B, C, H, W) to what is said of each cell."""
        c, (B, C, H, W) = self.config, images.shape
        if c.channels != C or H % STRIDES[-1] or W % STRIDES[-1]:
            raise UserError(
                f"expected images of shape (B, {c.channels}, H, W) with H and W multiples of {STRIDES[-1]}, "
                f"got {tuple(images.shape)}"
            )
        grid = Grid.of(H, W, device=images.device)
        maps = [F.relu(norm(x)) for norm, x in zip(self.map_norms, self._maps(images), strict=True)]
        x_BLD = cells(maps) + self.level[grid.level] + self.around([self.narrow(x) for x in maps])
        x_BLD = x_BLD + feed(self.head, self.norm(x_BLD), context=grid.level.expand(B, -1))
        out = self.out(self.out_norm(x_BLD)).float()
        logits, offset, size = out.split((c.num_classes, 2, 2), dim=-1)
        stride_L1 = grid.stride[:, None]
        centre = grid.centre + offset * stride_L1
        half = size.clamp(max=_LARGEST).exp() * stride_L1
        return Output(logits, torch.cat([centre - half, centre + half], dim=-1), grid)

    def _maps(self, images: Tensor) -> list[Tensor]:
        fine = self.fine(self.stem(images))
        coarse = self.coarse(fine)
        fine, coarse = self.lateral[0](fine), self.lateral[1](coarse)
        return [fine + F.interpolate(coarse, scale_factor=2.0), coarse]
