"""What the Transformers here share: sizes of blocks, mixtures and patches, attention without a direction, running.

Shapes here: H heads, d = D / H the width of a head.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # torch's own customary name
from torch.utils.checkpoint import checkpoint

from mixtura.config import MoEConfig
from mixtura.dispatch import Policy
from mixtura.errors import UserError
from mixtura.experts import MLP
from mixtura.layer import MoE
from mixtura.losses.balance import LOSSES
from mixtura.losses.parameters import PARAMETER_LOSSES
from mixtura.models.fused import RMSNorm


def loss_coefficients(used: Mapping[str, float]) -> dict[str, float]:
    """Every loss by name with its coefficient, 0 where none is given: a command line can then set each.

    Example:
        >>> coefficients = loss_coefficients({"z": 1e-3})
        >>> coefficients["z"], coefficients["load_balance"]
        (0.001, 0.0)
    """
    return {**dict.fromkeys((*LOSSES, *PARAMETER_LOSSES), 0.0), **used}


@dataclass(frozen=True, kw_only=True)
class BlocksConfig:
    """Sizes of Transformer blocks and of their mixtures.

    Raises:
        UserError: a width that the heads do not divide, or a size below 1.

    Example:
        >>> BlocksConfig(dim=64, layers=2, num_experts=8, k=2).moe().num_experts
        8
    """

    dim: int = 64
    """D, model width."""
    layers: int = 2
    """Transformer blocks."""
    heads: int = 4
    """H, attention heads; they divide the width."""
    hidden: int = 128
    """F, hidden width of a dense feed-forward block and of each expert."""
    dropout: float = 0.0
    """In training, the share of each expert's hidden units set to 0; fine-tuning takes more than pre-training."""
    activation: str = "gelu"
    """relu, gelu, silu, swiglu, geglu or clamped_swiglu."""
    num_experts: int = 16
    """E, experts of each mixture; 0: a dense model."""
    k: int = 1
    """K, experts per token."""
    moe_every: int = 1
    """Every n-th block is a mixture, counted so that the last of each n is one; the others are dense."""
    router: str = "switch"
    """A name in mixtura.routers.ROUTERS."""
    router_options: Mapping[str, int | float | bool | str] = field(default_factory=dict)
    """Further arguments of the router."""
    capacity_factor: float | None = None
    """Rows per expert as a multiple of the even share; None: dropless."""
    policy: Policy = "drop"
    """Who is kept when an expert is full."""
    dense_hidden: int = 0
    """Hidden width of the dense feed-forward blocks between mixtures; 0: as hidden."""
    shared_hidden: int = 0
    """Hidden width of an expert that every token passes; 0: none."""
    losses: Mapping[str, float] = field(default_factory=lambda: loss_coefficients({"load_balance": 1e-2, "z": 1e-3}))
    """Losses of each mixture and their coefficients; 0: none."""

    def __post_init__(self) -> None:
        for name in ("dim", "layers", "heads", "hidden", "moe_every"):
            if getattr(self, name) < 1:
                raise UserError(f"expected {name} of at least 1, got {getattr(self, name)}")
        if self.num_experts < 0:
            raise UserError(f"expected num_experts of at least 0 (0: dense), got {self.num_experts}")
        if self.dim % self.heads:
            raise UserError(f"expected heads that divide dim={self.dim}, got heads={self.heads}")

    def is_moe(self, block: int) -> bool:
        """Whether block number `block`, from 0, holds a mixture."""
        return self.num_experts > 0 and block % self.moe_every == self.moe_every - 1

    def moe(self) -> MoEConfig:
        """The recipe of each mixture."""
        return MoEConfig(
            dim=self.dim,
            hidden=self.hidden,
            num_experts=self.num_experts,
            k=self.k,
            router=self.router,
            router_options=self.router_options,
            activation=self.activation,
            dropout=self.dropout,
            shared_hidden=self.shared_hidden,
            capacity_factor=self.capacity_factor,
            policy=self.policy,
            losses={name: coefficient for name, coefficient in self.losses.items() if coefficient},
        )

    def feed_forward(self, block: int) -> nn.Module:
        """The mixture or the dense MLP of block number `block`, from 0."""
        if self.is_moe(block):
            return self.moe().build()
        return MLP(dim=self.dim, hidden=self.dense_hidden or self.hidden, activation=self.activation)


@dataclass(frozen=True, kw_only=True)
class PatchesConfig(BlocksConfig):
    """Sizes of a Transformer over the patches of square images.

    Raises:
        UserError: patches that do not divide the image, a size below 1, and what `BlocksConfig` refuses.

    Example:
        >>> PatchesConfig(image_size=28, patch_size=4).patches
        49
    """

    image_size: int = 28
    """H, height and width of the images, in pixels; `mixtura train` takes it from the data. 0: not known yet."""
    patch_size: int = 4
    """P, height and width of a patch, in pixels; it divides the image's."""
    channels: int = 1
    """1: grey, 3: colours; `mixtura train` takes it from the data."""
    num_classes: int = 10
    """Classes; `mixtura train` takes it from the data."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("patch_size", "channels", "num_classes"):
            if getattr(self, name) < 1:
                raise UserError(f"expected {name} of at least 1, got {getattr(self, name)}")
        if self.image_size < 0 or self.image_size % self.patch_size:
            raise UserError(
                f"expected patch_size that divides image_size={self.image_size}, got patch_size={self.patch_size}"
            )

    @property
    def patches(self) -> int:
        """L.

        Raises:
            UserError: the image size is not known.
        """
        if not self.image_size:
            raise UserError("expected image_size of at least 1, got 0")
        return (self.image_size // self.patch_size) ** 2


def feed(feed_forward: nn.Module, x_BLD: Tensor, *, context: Tensor) -> Tensor:
    """Run a mixture or a dense MLP; the context is for routers that need one: (B, L, D) -> (B, L, D).

    Example:
        >>> mlp = BlocksConfig(dim=4, heads=1, num_experts=0).feed_forward(0)
        >>> feed(mlp, torch.zeros(1, 2, 4), context=torch.zeros(1, 2)).shape
        torch.Size([1, 2, 4])
    """
    known = {"context": context} if isinstance(feed_forward, MoE) else {}
    y_BLD: Tensor = feed_forward(x_BLD, **known)
    return y_BLD


def run_block(block: Callable[[], Tensor], number: int, *, recompute_interval: int = 0) -> Tensor:
    """Run block `number`, from 0; of every `recompute_interval`-th one the backward pass makes the activations again.

    Args:
        block: with its inputs bound, by `functools.partial`.
        number: of the block.
        recompute_interval: 0 keeps all activations.

    Example:
        >>> run_block(lambda: torch.ones(1), 0, recompute_interval=1)
        tensor([1.])
    """
    if recompute_interval and (number + 1) % recompute_interval == 0 and torch.is_grad_enabled():
        again: Tensor = checkpoint(block, use_reentrant=False)
        return again
    return block()


def reset_parts(model: nn.Module) -> None:
    """Set all parts of a model afresh that know how, before it sets what they do not know of one another.

    Example:
        >>> linear = nn.utils.skip_init(nn.Linear, 2, 2)
        >>> reset_parts(nn.Sequential(linear))
        >>> linear.weight.abs().max().item() <= 0.5 ** 0.5
        True
    """
    for module in model.modules():
        reset = getattr(module, "reset_parameters", None)
        if module is not model and callable(reset):
            reset()


class SelfAttention(nn.Module):
    """Every token attends to all of its sequence.

    Args:
        dim: D.
        heads: H.

    Example:
        >>> SelfAttention(8, heads=2)(torch.zeros(1, 3, 8)).shape
        torch.Size([1, 3, 8])
    """

    def __init__(self, dim: int, *, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)

    def forward(self, x_BLD: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, D)."""
        B, L, D = x_BLD.shape
        q, k, v = self.qkv(x_BLD).view(B, L, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)
        y_BHLd = F.scaled_dot_product_attention(q, k, v)
        mixed: Tensor = self.out(y_BHLd.transpose(1, 2).reshape(B, L, D))
        return mixed


class Block(nn.Module):
    """Attention to all tokens, then a mixture or a dense MLP, each on a normalised residual branch.

    Args:
        config: sizes.
        number: of the block, from 0.

    Example:
        >>> type(Block(BlocksConfig(moe_every=2), 0).feed_forward).__name__
        'MLP'
    """

    def __init__(self, config: BlocksConfig, number: int) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.dim)
        self.attention = SelfAttention(config.dim, heads=config.heads)
        self.feed_forward_norm = RMSNorm(config.dim)
        self.feed_forward = config.feed_forward(number)

    def forward(self, x_BLD: Tensor, *, context: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, D); the context, (B, L), is for routers that need one."""
        x_BLD = x_BLD + self.attention(self.attention_norm(x_BLD))
        return x_BLD + feed(self.feed_forward, self.feed_forward_norm(x_BLD), context=context)
