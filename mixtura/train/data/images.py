"""Labelled images: where they come from, what is held out, and what was left out, counted."""

import importlib.util
import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from pathlib import Path

import torch
from torch import Tensor

from mixtura.errors import UserError
from mixtura.train.data import mnist

FASHION = "fashion-mnist"
_ONE_CLASS = 0.9


@dataclass(frozen=True, kw_only=True)
class ImageConfig:
    """Where images come from, how they are changed in training, and how they become batches.

    Raises:
        UserError: when a value is out of its range.

    Example:
        >>> ImageConfig(path="fashion-mnist", crop=2).batch_size
        64
    """

    path: str = ""
    """A folder with a folder of images per class (or train/ and test/ with those); a folder with the four files of
    MNIST's format; fashion-mnist: those of the Debian package. Empty: the digits of scikit-learn."""
    image_size: int = 0
    """Height and width that a folder's images are scaled to; 0: all must have the size of the first, and be square."""
    colour: bool = False
    """Keep the colours of a folder's images; else they become grey."""
    val_fraction: float = 0.2
    """Share of each class held out, where the data have no test part of their own (0 to 0.5)."""
    batch_size: int = 64
    """Images in one micro-step on one device."""
    crop: int = 1
    """In training, move each image by up to so many pixels each way; what comes in at the border is black."""
    flip: bool = False
    """In training, mirror every other image, left and right; not for digits or letters."""
    seed: int = 0
    """Chooses the held-out images, the order of the others, and how they are changed."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise UserError(f"data.batch_size: expected at least 1, got {self.batch_size}")
        for name in ("image_size", "crop", "seed"):
            if getattr(self, name) < 0:
                raise UserError(f"data.{name}: expected 0 or more, got {getattr(self, name)}")
        if not 0 < self.val_fraction <= 0.5:
            raise UserError(f"data.val_fraction: expected more than 0 and at most 0.5, got {self.val_fraction}")


def fingerprint(classes: Sequence[str], parts: Iterable[Tensor]) -> str:
    """A name for data that changes with any of their values.

    Example:
        >>> fingerprint(("a",), [torch.zeros(2)]) == fingerprint(("a",), [torch.zeros(2, 1)])
        False
    """
    key = blake2b(repr(tuple(classes)).encode(), digest_size=16)
    for values in parts:
        key.update(str(tuple(values.shape)).encode())
        key.update(values.contiguous().numpy().tobytes())
    return key.hexdigest()


@dataclass(frozen=True)
class ImageSet:
    """Images with their labels.

    Attributes:
        images: uint8 (N, C, H, H).
        labels: int64 (N,).

    Example:
        >>> len(ImageSet(torch.zeros(3, 1, 8, 8, dtype=torch.uint8), torch.zeros(3, dtype=torch.long)))
        3
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def part(self, index: Tensor) -> "ImageSet":
        """Those at the places of an int64 index."""
        return ImageSet(self.images[index], self.labels[index])


@dataclass(frozen=True, kw_only=True)
class Images:
    """What a run trains on and is judged by.

    Attributes:
        name: where they come from.
        classes: the name of each label.
        train: to learn from.
        val: held out.
        skipped: how many files were passed over, (reason, count).

    Example:
        >>> images = read_images(ImageConfig())
        >>> images.classes, len(images.train), len(images.val), images.train.images.shape[1:]
        (('0', '1', '2', '3', '4', '5', '6', '7', '8', '9'), 1442, 355, torch.Size([1, 8, 8]))
    """

    name: str
    classes: tuple[str, ...]
    train: ImageSet
    val: ImageSet
    skipped: tuple[tuple[str, int], ...] = ()

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
        """Changes with any pixel or label."""
        parts = [values for part in (self.train, self.val) for values in (part.images, part.labels)]
        return fingerprint(self.classes, parts)

    def report(self) -> list[str]:
        """Lines for people: images of each class, and the count of each reason to leave a file out."""
        counts = [part.labels.bincount(minlength=len(self.classes)).tolist() for part in (self.train, self.val)]
        lines = [
            f"{name:>12}  train {train:6,}   held out {val:6,}"
            for name, train, val in zip(self.classes, *counts, strict=True)
        ]
        size = f"{self.image_size} x {self.image_size}, {'grey' if self.channels == 1 else 'colour'}"
        left_out = ", ".join(f"{count} {reason}" for reason, count in self.skipped)
        total = f"{self.name}: {len(self.train):,} images to train on, {len(self.val):,} held out, {size}"
        return [*lines, total + (f"; left out: {left_out}" if left_out else "")]


def read_images(config: ImageConfig) -> Images:
    """Read the images that a configuration names.

    Raises:
        UserError: nothing there, a file that is empty, damaged or of another size; fewer than two classes, or a class
            without images for both parts.

    Warns:
        UserWarning: nine of ten images belong to one class.
    """
    if not config.path:
        images = _digits(config)
    elif config.path == FASHION:
        images = _mnist(mnist.fashion_folder())
    else:
        folder = Path(config.path).expanduser()
        if not folder.is_dir():
            raise UserError(f"{folder}: expected a folder of images or {FASHION!r}, found none; check --data.path")
        images = _mnist(folder) if mnist.is_here(folder) else _folder(folder, config)
    _check_classes(images)
    return images


def _digits(config: ImageConfig) -> Images:
    if importlib.util.find_spec("sklearn") is None:
        raise UserError("the digits need scikit-learn; run: pip install 'mixtura[vision]', or name a --data.path")
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = (torch.from_numpy(digits.images) * (255 / 16)).round().to(torch.uint8).unsqueeze(1)
    whole = ImageSet(pixels, torch.from_numpy(digits.target).long())
    return _split(whole, config, name="digits", classes=tuple(map(str, range(10))))


def _mnist(folder: Path) -> Images:
    train, val = (ImageSet(*mnist.read(folder, part)) for part in ("train", "t10k"))
    highest = int(torch.cat([train.labels, val.labels]).max())
    classes = mnist.FASHION_CLASSES if folder.name == FASHION else tuple(map(str, range(highest + 1)))
    if highest >= len(classes):
        raise UserError(f"{folder}: expected labels of {len(classes)} classes, got {highest}")
    if train.images.shape[1:] != val.images.shape[1:]:
        sizes = [tuple(part.images.shape[2:]) for part in (train, val)]
        raise UserError(f"{folder}: expected images of one size, got {sizes[0]} in train and {sizes[1]} in t10k")
    return Images(name=folder.name, classes=classes, train=train, val=val)


def _folder(folder: Path, config: ImageConfig) -> Images:
    from mixtura.train.data import pictures

    parts = pictures.parts_of(folder)
    read = pictures.read(parts, size=config.image_size, colour=config.colour)
    if len(parts) == 1:
        whole = ImageSet(read.images[0], read.labels[0])
        return _split(whole, config, name=folder.name, classes=read.classes, skipped=read.skipped)
    train, val = (ImageSet(*pair) for pair in zip(read.images, read.labels, strict=True))
    return Images(name=folder.name, classes=read.classes, train=train, val=val, skipped=read.skipped)


def _split(
    whole: ImageSet,
    config: ImageConfig,
    *,
    name: str,
    classes: tuple[str, ...],
    skipped: tuple[tuple[str, int], ...] = (),
) -> Images:
    """Hold out the same share of every class, at least one image of each."""
    generator = torch.Generator().manual_seed(config.seed)
    train, val = [], []
    for label in range(len(classes)):
        places = (whole.labels == label).nonzero().view(-1)
        places = places[torch.randperm(len(places), generator=generator)]
        held_out = max(1, math.floor(len(places) * config.val_fraction))
        val.append(places[:held_out])
        train.append(places[held_out:])
    parts = [whole.part(torch.cat(part).sort().values) for part in (train, val)]
    return Images(name=name, classes=classes, train=parts[0], val=parts[1], skipped=skipped)


def _check_classes(images: Images) -> None:
    if len(images.classes) < 2:
        raise UserError(f"{images.name}: expected at least 2 classes, got only {images.classes[0]!r}")
    for part, name in ((images.train, "to train on"), (images.val, "held out")):
        counts = part.labels.bincount(minlength=len(images.classes))
        if not counts.all():
            without = images.classes[int(counts.argmin())]
            raise UserError(f"{images.name}: expected images {name} of every class, got none of {without!r}; add some")
    share, label = (images.train.labels.bincount() / len(images.train)).max(0)
    if share > _ONE_CLASS:
        name = images.classes[int(label)]
        warnings.warn(
            f"expected classes of similar size, got {float(share):.0%} of the images in {name!r}: a model that always "
            "says so looks good; look at the accuracy of each class",
            stacklevel=3,
        )
