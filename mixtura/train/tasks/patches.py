"""Which patches go to which expert, and which are dropped: as numbers, and as pictures of the report."""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mixtura.hooks import layer_names, tap
from mixtura.observe.panels import picture
from mixtura.routing import Routing, Rows, SlotRows
from mixtura.train.data.image_stream import scaled
from mixtura.train.tasks.task import device_of

if TYPE_CHECKING:
    from mixtura.models.vit import ViT
    from mixtura.train.data.images import Images

DROPPED = -1
_COLOURS = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
    (153, 153, 153),
)
_SHOWN = 10
_SCALE = 4  # pixels of the picture for one of an image


@torch.no_grad()
def expert_of_patch(model: ViT, images: Tensor) -> dict[str, Tensor]:
    """The expert with the largest weight that worked on each patch, by layer int64 (B, L); -1: none had room for it.

    The images are routed together, as one batch. Layers that work on slots (Soft MoE) are left out: there no patch has
    an expert.

    Args:
        model: in evaluation mode.
        images: float (B, C, H, H), as the model takes them.

    Example:
        >>> from mixtura.models.vit import ViT, ViTConfig
        >>> places = expert_of_patch(ViT(ViTConfig()).eval(), torch.zeros(2, 1, 28, 28))
        >>> [(name, tuple(expert_BL.shape)) for name, expert_BL in places.items()]
        [('blocks.1.feed_forward', (2, 49)), ('blocks.3.feed_forward', (2, 49))]
    """
    names = layer_names(model)
    found: dict[str, Tensor] = {}

    def listen(layer: nn.Module, _: Routing, rows: Rows) -> None:
        if layer in names and not isinstance(rows, SlotRows):
            found[names[layer]] = _served_by(rows).view(len(images), -1)

    with tap(listen):
        model(images)
    return found


def _served_by(rows: Rows) -> Tensor:
    """The expert of each token's heaviest row, -1 for tokens without one: int64 (T,)."""
    index, kept = rows.index, int(rows.counts_E.sum())
    token_N, weight_N = index.token_N[:kept], rows.weight_N[:kept]
    expert_N = torch.arange(len(rows.counts_E), device=token_N.device).repeat_interleave(rows.counts_E)
    heaviest_T = weight_N.new_full((index.num_tokens,), -torch.inf).scatter_reduce(0, token_N, weight_N, "amax")
    is_heaviest_N = weight_N == heaviest_T[token_N]
    expert_T = torch.full_like(heaviest_T, DROPPED, dtype=torch.long)
    return expert_T.scatter_reduce(0, token_N[is_heaviest_N], expert_N[is_heaviest_N], "amax")


def patch_panels(model: ViT, images: Images) -> list[dict[str, Any]]:
    """A picture for each mixture: one held-out image of each class, its patches in their experts' colours."""
    firsts = [int((images.val.labels == label).nonzero()[0]) for label in range(len(images.classes))][:_SHOWN]
    shown = images.val.images[firsts]
    places = expert_of_patch(model, scaled(shown).to(device_of(model)))
    note = "One held-out image of each class, as it is and with every patch in the colour of its expert; dark: dropped."
    size = model.config.patch_size
    return [
        picture(f"Patches by expert, {name}", png(coloured(shown, expert_BL.cpu(), size=size)), note=note)
        for name, expert_BL in places.items()
    ]


def coloured(images: Tensor, expert_BL: Tensor, *, size: int) -> Tensor:
    """The images in a row, below them the same with coloured patches: uint8 (rows, columns, 3).

    Args:
        images: uint8 (B, C, H, H).
        expert_BL: expert of each patch; -1: dropped, which is dark.
        size: of a patch, in pixels.

    Example:
        >>> grey = torch.full((2, 1, 4, 4), 255, dtype=torch.uint8)
        >>> coloured(grey, torch.tensor([[0, 1, 2, -1]] * 2), size=2).shape
        torch.Size([40, 40, 3])
    """
    B, C, H, _ = images.shape
    grey = images.float().expand(B, 3, H, H) if C == 1 else images.float()
    palette = torch.tensor((*_COLOURS, (20, 20, 20)), dtype=torch.float32)
    number_BL = expert_BL.remainder(len(_COLOURS)).where(expert_BL >= 0, len(_COLOURS))
    side = H // size
    colour = palette[number_BL].view(B, side, side, 3).permute(0, 3, 1, 2)
    colour = colour.repeat_interleave(size, 2).repeat_interleave(size, 3)
    both = torch.cat([grey, 0.65 * colour + 0.35 * grey])
    return grid(both.round().to(torch.uint8), columns=B)


def grid(images: Tensor, *, columns: int, scale: int = _SCALE) -> Tensor:
    """Images in rows and columns with white lines between: uint8 (B, C, H, H) -> uint8 (rows, columns, 3).

    Args:
        images: as many as fill the rows.
        columns: of them.
        scale: pixels of the picture for one of an image.

    Example:
        >>> grid(torch.zeros(6, 1, 7, 7, dtype=torch.uint8), columns=3).shape
        torch.Size([64, 96, 3])
    """
    B, _, H, _ = images.shape
    lined = nn.functional.pad(images.expand(B, 3, H, H), (0, 1, 0, 1), value=255)
    rows = lined.view(B // columns, columns, 3, H + 1, H + 1).permute(0, 3, 1, 4, 2)
    pixels = rows.reshape(B // columns * (H + 1), columns * (H + 1), 3)
    return pixels.repeat_interleave(scale, 0).repeat_interleave(scale, 1)


def png(pixels: Tensor) -> bytes:
    """A picture as a PNG file: uint8 (rows, columns, 3); no package is needed for that.

    Example:
        >>> png(torch.zeros(2, 3, 3, dtype=torch.uint8))[1:4]
        b'PNG'
    """

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, _ = pixels.shape
    lines = b"".join(b"\0" + bytes(line) for line in pixels.reshape(height, width * 3).tolist())
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
