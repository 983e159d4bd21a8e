"""Images with boxes around their objects: sets, batches, an endless stream of them, and what is told about them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain

import torch
from torch import Tensor

from mixtura.models.objects import Objects
from mixtura.train.data.image_stream import scaled
from mixtura.train.data.images import fingerprint
from mixtura.train.data.shuffle import ShuffledStream


@dataclass(frozen=True, kw_only=True)
class BoxedSet:
    """Images and the objects in them.

    Attributes:
        images: uint8 (N, C, H, H).
        objects: theirs, in the order of the images.
        crowd: bool (M,), boxes around crowds, which are not learned and for which nobody is blamed.

    Example:
        >>> one = torch.zeros(1, dtype=torch.long)
        >>> objects = Objects(boxes=torch.tensor([[0.0, 0.0, 4.0, 4.0]]), labels=one, image=one + 2)
        >>> images = torch.zeros(3, 1, 8, 8, dtype=torch.uint8)
        >>> whole = BoxedSet(images=images, objects=objects, crowd=torch.tensor([False]))
        >>> whole.part(torch.tensor([1, 2])).objects.image.tolist()
        [1]
    """

    images: Tensor
    objects: Objects
    crowd: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def part(self, index_B: Tensor) -> BoxedSet:
        """The images at some places, and their objects."""
        starts, ends = (torch.searchsorted(self.objects.image, index_B, right=right) for right in (False, True))
        counts = ends - starts
        image_M = torch.arange(len(index_B)).repeat_interleave(counts)
        before_M = (counts.cumsum(0) - counts)[image_M]
        place_M = starts[image_M] + torch.arange(len(image_M)) - before_M
        objects = Objects(boxes=self.objects.boxes[place_M], labels=self.objects.labels[place_M], image=image_M)
        return BoxedSet(images=self.images[index_B], objects=objects, crowd=self.crowd[place_M])

    def learned(self) -> Objects:
        """The objects without crowds."""
        if not self.crowd.any():
            return self.objects
        kept = ~self.crowd
        return Objects(boxes=self.objects.boxes[kept], labels=self.objects.labels[kept], image=self.objects.image[kept])


@dataclass(frozen=True)
class BoxedBatch:
    """Images as models take them, and their objects without crowds.

    Shapes: float32 (B, C, H, H) from -1 to 1.

    Example:
        >>> none = torch.zeros(0, dtype=torch.long)
        >>> empty = Objects(boxes=torch.zeros(0, 4), labels=none, image=none)
        >>> BoxedBatch(torch.zeros(2, 1, 8, 8), empty).images.shape[0]
        2
    """

    images: Tensor
    objects: Objects

    def to(self, device: torch.device) -> BoxedBatch:
        """The same on a device."""
        o = self.objects
        there = Objects(boxes=o.boxes.to(device), labels=o.labels.to(device), image=o.image.to(device))
        return BoxedBatch(self.images.to(device), there)

    @classmethod
    def of(cls, part: BoxedSet) -> BoxedBatch:
        """Of a part of a set."""
        return cls(scaled(part.images), part.learned())


@dataclass(frozen=True, kw_only=True)
class BoxedImages:
    """What a detector trains on and is judged by.

    Attributes:
        name: where they come from.
        classes: the name of each label.
        train: to learn from.
        val: held out.
        notes: lines about what was done to them.
    """

    name: str
    classes: tuple[str, ...]
    train: BoxedSet
    val: BoxedSet
    notes: tuple[str, ...] = ()

    @property
    def channels(self) -> int:
        """C."""
        return self.train.images.shape[1]

    @property
    def image_size(self) -> int:
        """H."""
        return self.train.images.shape[2]

    @cached_property
    def fingerprint(self) -> str:
        """Changes with any pixel, box or label."""
        sets = (self.train, self.val)
        parts = ((p.images, p.objects.boxes, p.objects.labels, p.objects.image, p.crowd) for p in sets)
        return fingerprint(self.classes, chain.from_iterable(parts))

    def report(self) -> list[str]:
        """Lines for people: objects of each class, images without any, crowds, and what was done."""
        parts = (self.train, self.val)
        counts = [part.learned().labels.bincount(minlength=len(self.classes)).tolist() for part in parts]
        lines = [
            f"{name:>12}  train {train:6,} boxes   held out {val:6,}"
            for name, train, val in zip(self.classes, *counts, strict=True)
        ]
        size = f"{self.image_size} x {self.image_size}, {'grey' if self.channels == 1 else 'colour'}"
        total = f"{self.name}: {len(self.train):,} images to train on, {len(self.val):,} held out, {size}"
        empty = [len(part) - len(part.objects.image.unique()) for part in parts]
        more = [f"images without boxes, kept as background: train {empty[0]:,}, held out {empty[1]:,}"]
        crowds = [int(part.crowd.sum()) for part in parts]
        more.append(f"boxes around crowds, not learned and not judged: train {crowds[0]:,}, held out {crowds[1]:,}")
        return [*lines, total, *more, *self.notes]


class BoxedStream(ShuffledStream[BoxedBatch]):
    """An endless stream of training batches, each image mirrored by chance where asked for; see `ShuffledStream`.

    Args:
        images: the data.
        batch_size: B of one rank.
        seed: of order and changes.
        flip: mirror every other image with its boxes, left and right.
        rank: of this process.
        world_size: processes that share the stream.

    Raises:
        UserError: see `ShuffledStream`.
    """

    def __init__(
        self, images: BoxedImages, *, batch_size: int, seed: int, flip: bool = False, rank: int = 0, world_size: int = 1
    ) -> None:
        self._train, self._flip = images.train, flip
        data: dict[str, int | str] = {"images": images.fingerprint}
        super().__init__(batch_size=batch_size, seed=seed, rank=rank, world_size=world_size, data=data)

    def epoch(self, generator: torch.Generator) -> Tensor:
        """The places of all images, shuffled."""
        return torch.randperm(len(self._train), generator=generator)

    def gather(self, rows_B: Tensor, generator: torch.Generator) -> BoxedBatch:
        """Those images, mirrored perhaps."""
        batch = BoxedBatch.of(self._train.part(rows_B))
        return mirrored(batch, torch.rand(len(rows_B), generator=generator) < 0.5) if self._flip else batch


def mirrored(batch: BoxedBatch, which_B: Tensor) -> BoxedBatch:
    """Some images and their boxes with left and right exchanged.

    Example:
        >>> one = torch.zeros(1, dtype=torch.long)
        >>> objects = Objects(boxes=torch.tensor([[1.0, 2.0, 4.0, 6.0]]), labels=one, image=one)
        >>> mirrored(BoxedBatch(torch.zeros(1, 1, 8, 8), objects), torch.tensor([True])).objects.boxes.tolist()
        [[4.0, 2.0, 7.0, 6.0]]
    """
    width, boxes = batch.images.shape[-1], batch.objects.boxes
    left, top, right, bottom = boxes.unbind(1)
    turned = torch.stack([width - right, top, width - left, bottom], dim=1)
    boxes = turned.where(which_B[batch.objects.image][:, None], boxes)
    images = batch.images.flip(-1).where(which_B[:, None, None, None], batch.images)
    return BoxedBatch(images, replace(batch.objects, boxes=boxes))


def in_order(images: BoxedSet, *, batch_size: int) -> Iterator[BoxedSet]:
    """All images unchanged, part by part, the last part with what is left."""
    for places in torch.arange(len(images)).split(batch_size):
        yield images.part(places)


def join(boxes: Sequence[Tensor], labels: Sequence[Tensor]) -> Objects:
    """The objects of several images, from each image's boxes (m, 4) and labels (m,).

    Example:
        >>> join([torch.zeros(0, 4), torch.zeros(2, 4)], [torch.zeros(0).long(), torch.zeros(2).long()]).image.tolist()
        [1, 1]
    """
    counts = torch.tensor([len(each) for each in labels])
    image_M = torch.arange(len(labels)).repeat_interleave(counts)
    return Objects(boxes=torch.cat([*boxes]), labels=torch.cat([*labels]), image=image_M)
