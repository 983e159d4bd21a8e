"""A small convolutional classifier whose convolutions are mixtures: of kernels, or of whole experts chosen per image.

Shapes here: B images, C channels, H and W height and width, O channels out, E experts.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # torch's own customary name

from mixtura.errors import UserError
from mixtura.experts import ModuleExperts
from mixtura.layer import MoE
from mixtura.models.patches import check_images
from mixtura.routers.topk import TopK

Kind = Literal["mixed", "routed", "dense"]


class CondConv(nn.Module):
    """A 3x3 convolution whose kernel is mixed for every image: sum_e sigmoid(w_e . mean(x))_e kernel_e.

    One convolution per image whatever E is: what grows is the number of parameters and the mixing of kernels. Source:
    Yang et al. 2019 (CondConv), equations 1 and 2.

    Args:
        channels: C.
        out_channels: O.
        num_experts: E.

    Shapes:
        weight: (E, O, C, 3, 3). forward: (B, C, H, W) -> (B, O, H, W).

    Raises:
        UserError: a size below 1.

    Example:
        >>> CondConv(3, 8, num_experts=4)(torch.zeros(2, 3, 6, 6)).shape
        torch.Size([2, 8, 6, 6])
    """

    def __init__(self, channels: int, out_channels: int, *, num_experts: int) -> None:
        super().__init__()
        for name, value in (("channels", channels), ("out_channels", out_channels), ("num_experts", num_experts)):
            if value < 1:
                raise UserError(f"expected {name} of at least 1, got {value}")
        self.gate = nn.Linear(channels, num_experts)
        self.weight = nn.Parameter(torch.empty(num_experts, out_channels, channels, 3, 3))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw each kernel as `nn.Conv2d` does, and the gate as `nn.Linear` does."""
        self.gate.reset_parameters()
        bound = (9 * self.weight.shape[2]) ** -0.5
        nn.init.uniform_(self.weight, -bound, bound)

    def shares(self, x: Tensor) -> Tensor:
        """How much each image takes of each kernel: (B, C, H, W) -> (B, E), from 0 to 1, not summing to 1."""
        return torch.sigmoid(self.gate(x.mean((2, 3))))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, O, H, W)."""
        (B, C, H, W), (E, out) = x.shape, self.weight.shape[:2]
        kernel = (self.shares(x).to(x.dtype) @ self.weight.view(E, -1)).view(B * out, C, 3, 3)
        # Every image is a group of its own: one call convolves each with its kernel.
        return F.conv2d(x.reshape(1, B * C, H, W), kernel, padding=1, groups=B).view(B, out, H, W)


class _PooledGate(nn.Module):
    """Scores an image by the mean of each channel; the layer hands images over flattened: (B, C*H*W) -> (B, E)."""

    def __init__(self, channels: int, *, num_experts: int) -> None:
        super().__init__()
        self.channels, self.linear = channels, nn.Linear(channels, num_experts)

    def reset_parameters(self) -> None:
        self.linear.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.linear(x.unflatten(1, (self.channels, -1)).mean(2))
        return scores


class RoutedConv(nn.Module):
    """3x3 convolutions as experts of `MoE`: each image passes the `k` that a gate over its channels chooses.

    Args:
        channels: C.
        out_channels: O.
        size: H and W.
        num_experts: E.
        k: experts per image.
        losses: see `MoE`.

    Shapes: (B, C, H, H) -> (B, O, H, H).

    Example:
        >>> RoutedConv(3, 8, size=6, num_experts=4)(torch.zeros(2, 3, 6, 6)).shape
        torch.Size([2, 8, 6, 6])
    """

    def __init__(
        self,
        channels: int,
        out_channels: int,
        *,
        size: int,
        num_experts: int,
        k: int = 1,
        losses: dict[str, float] | None = None,
    ) -> None:
        super().__init__()
        gate = _PooledGate(channels, num_experts=num_experts)
        self.shape = (out_channels, size, size)
        self.moe = MoE(
            router=TopK(channels * size**2, num_experts, k, order="softmax_topk", gate=gate),
            experts=ModuleExperts(
                [nn.Conv2d(channels, out_channels, 3, padding=1, bias=False) for _ in range(num_experts)],
                row_shape=(channels, size, size),
            ),
            losses={"load_balance": 1e-2} if losses is None else losses,
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, H) -> (B, O, H, H)."""
        y: Tensor = self.moe(x)
        return y.reshape(x.shape[0], *self.shape)


@dataclass(frozen=True, kw_only=True)
class CondConvConfig:
    """Sizes of a convolutional classifier.

    Raises:
        UserError: a size below 1, an image too small for the stages, an unknown kind.

    Example:
        >>> CondConvConfig(kind="dense").num_experts
        8
    """

    image_size: int = 28
    """Height and width of the images, in pixels; `mixtura train` takes it from the data."""
    channels: int = 1
    """1: grey, 3: colours; `mixtura train` takes it from the data."""
    num_classes: int = 10
    """Classes; `mixtura train` takes it from the data."""
    width: int = 16
    """Channels of the first stage; each further stage has twice as many and half the height and width."""
    stages: int = 3
    """Stages, of one convolution each behind the first."""
    kind: Kind = "mixed"
    """mixed: a kernel mixed for every image; routed: experts chosen per image; dense: neither."""
    num_experts: int = 8
    """E, experts of each convolution behind the first."""
    k: int = 1
    """K, experts per image, of routed ones."""

    def __post_init__(self) -> None:
        for name in ("image_size", "channels", "width", "stages", "num_experts", "k"):
            if getattr(self, name) < 1:
                raise UserError(f"expected {name} of at least 1, got {getattr(self, name)}")
        if self.num_classes < 2:
            raise UserError(f"expected num_classes of at least 2, got {self.num_classes}")
        if self.kind not in get_args(Kind):
            raise UserError(f"expected a kind among {', '.join(get_args(Kind))}, got {self.kind!r}")
        if self.image_size >> self.stages < 1:
            raise UserError(
                f"expected an image_size of at least {1 << self.stages} for {self.stages} stages, got {self.image_size}"
            )

    def convolution(self, stage: int) -> nn.Module:
        """The convolution of a stage, from 0."""
        channels, out = self.width << stage, self.width << (stage + 1)
        if self.kind == "mixed":
            return CondConv(channels, out, num_experts=self.num_experts)
        if self.kind == "routed":
            size = self.image_size >> (stage + 1)
            return RoutedConv(channels, out, size=size, num_experts=self.num_experts, k=self.k)
        return nn.Conv2d(channels, out, 3, padding=1, bias=False)


class CondConvNet(nn.Module):
    """An image classifier: a plain convolution, then stages of halving and one convolution, mean, logits.

    Args:
        config: the sizes.

    Shapes: images float (B, C, H, H) -> logits (B, classes).

    Raises:
        UserError: in `forward`, images of another shape.

    Example:
        >>> CondConvNet(CondConvConfig())(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """

    def __init__(self, config: CondConvConfig) -> None:
        super().__init__()
        self.config = config
        widths = [config.width << stage for stage in range(config.stages + 1)]
        self.stem = nn.Conv2d(config.channels, config.width, 3, padding=1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in widths)
        self.convolutions = nn.ModuleList(config.convolution(stage) for stage in range(config.stages))
        self.head = nn.Linear(widths[-1], config.num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, H) to logits (B, classes)."""
        logits: Tensor = self.head(self.features(images))
        return logits

    def features(self, images: Tensor) -> Tensor:
        """What the last layer sees of each image: (B, C, H, H) -> (B, D)."""
        c = self.config
        check_images(images, channels=c.channels, size=c.image_size)
        x = F.relu(self.norms[0](self.stem(images)))
        for convolution, norm in zip(self.convolutions, self.norms[1:], strict=True):
            x = F.relu(norm(convolution(F.max_pool2d(x, 2))))
        return x.mean((2, 3))
