"""Labelled images -> batches: an endless shuffled stream that changes them a little, and held-out ones in order."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  # torch's own customary name

from mixtura.train.data.images import Images, ImageSet
from mixtura.train.data.shuffle import ShuffledStream


@dataclass(frozen=True)
class ImageBatch:
    """Images as models take them, and their labels.

    Shapes: float32 (B, C, H, H) from -1 to 1; int64 (B,).

    Example:
        >>> ImageBatch(torch.zeros(2, 1, 8, 8), torch.tensor([3, 4])).labels_B.tolist()
        [3, 4]
    """

    images: Tensor
    labels_B: Tensor

    def to(self, device: torch.device) -> "ImageBatch":
        """The same on a device."""
        return ImageBatch(self.images.to(device), self.labels_B.to(device))


class ImageStream(ShuffledStream[ImageBatch]):
    """An endless stream of training batches, each image moved and mirrored by chance; see `ShuffledStream`.

    Args:
        images: the data.
        batch_size: B of one rank.
        seed: of order and changes, which depend on it and on the place in the stream alone.
        crop: see `augment`.
        flip: see `augment`.
        rank: of this process.
        world_size: processes that share the stream.

    Raises:
        UserError: see `ShuffledStream`.

    Example:
        >>> from mixtura.train.data.images import ImageConfig, read_images
        >>> stream = ImageStream(read_images(ImageConfig()), batch_size=4, seed=0)
        >>> next(stream).images.shape, stream.state_dict()["position"]
        (torch.Size([4, 1, 8, 8]), 4)
    """

    def __init__(
        self,
        images: Images,
        *,
        batch_size: int,
        seed: int,
        crop: int = 0,
        flip: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self._train, self._crop, self._flip = images.train, crop, flip
        data: dict[str, int | str] = {"images": images.fingerprint}
        super().__init__(batch_size=batch_size, seed=seed, rank=rank, world_size=world_size, data=data)

    def epoch(self, generator: torch.Generator) -> Tensor:
        """The places of all images, shuffled."""
        return torch.randperm(len(self._train), generator=generator)

    def gather(self, rows_B: Tensor, generator: torch.Generator) -> ImageBatch:
        """Those images, changed."""
        part = self._train.part(rows_B)
        changed = augment(part.images, crop=self._crop, flip=self._flip, generator=generator)
        return ImageBatch(scaled(changed), part.labels)


def augment(images: Tensor, *, crop: int, flip: bool, generator: torch.Generator) -> Tensor:
    """Move each image by up to `crop` pixels each way, and mirror every other one, left and right: (B, C, H, W).

    Args:
        images: of any dtype.
        crop: what comes in at the border is 0.
        flip: mirror.
        generator: of the CPU.

    Example:
        >>> image = torch.arange(4).view(1, 1, 2, 2)
        >>> augment(image, crop=0, flip=False, generator=torch.Generator()) is image
        True
        >>> moved = augment(image, crop=5, flip=True, generator=torch.Generator().manual_seed(0))
        >>> moved.flatten().tolist()
        [0, 0, 0, 0]
    """
    B, C, H, W = images.shape
    if crop:
        corner_B2 = torch.randint(0, 2 * crop + 1, (B, 2), generator=generator)
        row_BH, column_BW = (corner_B2[:, i, None] + torch.arange(n) for i, n in ((0, H), (1, W)))
        padded = F.pad(images, (crop,) * 4)
        places = (torch.arange(B)[:, None, None, None], torch.arange(C)[None, :, None, None])
        images = padded[(*places, row_BH[:, None, :, None], column_BW[:, None, None, :])]
    if flip:
        is_mirrored_B = torch.rand(B, generator=generator) < 0.5
        images = images.flip(-1).where(is_mirrored_B[:, None, None, None], images)
    return images


def scaled(images: Tensor) -> Tensor:
    """Bytes to numbers from -1 to 1.

    Example:
        >>> scaled(torch.tensor([0, 255], dtype=torch.uint8)).tolist()
        [-1.0, 1.0]
    """
    return images.float() / 127.5 - 1


def in_order(images: ImageSet, *, batch_size: int) -> Iterator[ImageBatch]:
    """All images unchanged, the last batch with what is left.

    Example:
        >>> whole = ImageSet(torch.zeros(5, 1, 2, 2, dtype=torch.uint8), torch.arange(5))
        >>> [batch.labels_B.tolist() for batch in in_order(whole, batch_size=2)]
        [[0, 1], [2, 3], [4]]
    """
    for start in range(0, len(images), batch_size):
        here = slice(start, start + batch_size)
        yield ImageBatch(scaled(images.images[here]), images.labels[here])
