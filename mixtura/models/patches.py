"""Images as sequences of patches: their shape, cutting, putting together.

Shapes here: B images, C channels, H and W their height and width, P the side of a patch, L patches of an image.
"""

import math

from torch import Tensor

from mixtura.errors import UserError


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
