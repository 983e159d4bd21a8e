"""Images as sequences of patches: the sizes of models that work on them, cutting and putting together.

Shapes here: B images, C channels, H and W their height and width, P the side of a patch, L patches of an image.
"""

import math
from dataclasses import dataclass

from torch import Tensor

from mixtura.errors import UserError
from mixtura.models.blocks import BlocksConfig


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


def check_images(images: Tensor, *, channels: int, size: int) -> None:
    """Refuse images of another shape than (B, C, H, H).

    Raises:
        UserError: says the shapes.

    Example:
        >>> import torch
        >>> check_images(torch.zeros(2, 1, 8, 8), channels=1, size=8)
    """
    if images.shape[1:] != (channels, size, size):
        raise UserError(f"expected images of shape (B, {channels}, {size}, {size}), got {tuple(images.shape)}")


def patches_of(images: Tensor, size: int) -> Tensor:
    """Cut images into patches, row by row: (B, C, H, W) -> (B, L, C * P * P).

    Example:
        >>> import torch
        >>> patches_of(torch.arange(16.0).view(1, 1, 4, 4), 2)[0, 1].tolist()
        [2.0, 3.0, 6.0, 7.0]
    """
    B, C, H, W = images.shape
    cut = images.reshape(B, C, H // size, size, W // size, size)
    return cut.permute(0, 2, 4, 1, 3, 5).reshape(B, (H // size) * (W // size), C * size * size)


def images_of(patches: Tensor, *, size: int, channels: int) -> Tensor:
    """Put the patches of square images together again, the inverse of `patches_of`: (B, L, C * P * P) -> (B, C, H, H).

    Example:
        >>> import torch
        >>> images = torch.randn(2, 3, 8, 8)
        >>> torch.equal(images_of(patches_of(images, 4), size=4, channels=3), images)
        True
    """
    B, L, _ = patches.shape
    side = math.isqrt(L)
    cut = patches.view(B, side, side, channels, size, size)
    return cut.permute(0, 3, 1, 4, 2, 5).reshape(B, channels, side * size, side * size)
