"""Images with known boxes: scenes composed from labelled images, or a user's folder in the format of COCO."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  # torch's own customary name

from mixtura.errors import UserError
from mixtura.train.data import mnist
from mixtura.train.data.boxed import BoxedImages, BoxedSet, join
from mixtura.train.data.images import FASHION, ImageConfig, ImageSet, read_images
from mixtura.train.data.shuffle import generator_of

_SEEN = 32  # of 255: what is darker belongs to no object
_TRIES = 12  # places tried for an object
_HIDDEN = 0.15  # share of the smaller of two boxes that the other may cover
_ONE_CLASS = 0.9


@dataclass(frozen=True, kw_only=True)
class SceneConfig:
    """Where images with boxes come from, and how they become batches.

    Raises:
        UserError: when a value is out of its range.

    Example:
        >>> SceneConfig(path="fashion-mnist").scenes
        6000
    """

    path: str = ""
    """A folder with images/ and annotations.json in the format of COCO (or train/ and val/ with those each); a folder
    with the four files of MNIST's format, or fashion-mnist: scenes of its images. Empty: scenes of scikit-learn's
    digits."""
    image_size: int = 64
    """Height and width of a scene, a multiple of 8; a user's image is scaled to fit, its rest stays black."""
    colour: bool = False
    """Keep the colours of a user's images; else they become grey."""
    val_fraction: float = 0.2
    """Share held out, of a user's images, or of the images that scenes are composed of (0 to 0.5)."""
    scenes: int = 6000
    """Scenes to learn from."""
    val_scenes: int = 500
    """Scenes held out, of other images than those to learn from."""
    fewest: int = 2
    """Objects in a scene, at least that many are tried."""
    most: int = 7
    """Objects in a scene at most."""
    smallest: int = 8
    """Longest side of an object at least, in pixels; sizes are even on a logarithmic scale."""
    largest: int = 32
    """Longest side of an object at most."""
    batch_size: int = 16
    """Images in one micro-step on one device."""
    flip: bool = False
    """In training, mirror every other image, left and right; not for digits or letters."""
    seed: int = 0
    """Chooses what is held out, composes the scenes, and orders them."""

    def __post_init__(self) -> None:
        for name in ("scenes", "val_scenes", "fewest", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"data.{name}: expected at least 1, got {getattr(self, name)}")
        if self.image_size < 8 or self.image_size % 8:
            raise UserError(f"data.image_size: expected a multiple of 8, got {self.image_size}")
        if not 0 < self.val_fraction <= 0.5:
            raise UserError(f"data.val_fraction: expected more than 0 and at most 0.5, got {self.val_fraction}")
        if self.most < self.fewest:
            raise UserError(f"data.most: expected at least data.fewest = {self.fewest}, got {self.most}")
        if self.seed < 0:
            raise UserError(f"data.seed: expected 0 or more, got {self.seed}")


def read_scenes(config: SceneConfig) -> BoxedImages:
    """Compose scenes, or read the folder that a configuration names.

    Raises:
        UserError: nothing there, or anything wrong in it; names the file, and the annotation where it is one.

    Warns:
        UserWarning: nine of ten boxes belong to one of several classes.
    """
    folder = Path(config.path).expanduser()
    if not config.path or config.path == FASHION or mnist.is_here(folder):
        images = composed(config)
    elif folder.is_dir():
        from mixtura.train.data import coco  # late: Pillow is optional

        images = coco.read(folder, config)
    else:
        raise UserError(f"{folder}: expected a folder in the format of COCO or {FASHION!r}, found none")
    _check_classes(images)
    return images


def composed(config: SceneConfig) -> BoxedImages:
    """Scenes of the labelled images that a configuration names; no source image is in both parts.

    Raises:
        UserError: sizes of objects that do not fit, and what `read_images` refuses.

    Example:
        >>> images = composed(SceneConfig(scenes=3, val_scenes=2))
        >>> images.train.images.shape, len(images.val), images.classes[:2]
        (torch.Size([3, 1, 64, 64]), 2, ('0', '1'))
    """
    if not 1 <= config.smallest <= config.largest <= config.image_size:
        raise UserError(
            "expected 1 <= data.smallest <= data.largest <= data.image_size, "
            f"got {config.smallest}, {config.largest}, {config.image_size}"
        )
    sources = read_images(ImageConfig(path=config.path, val_fraction=config.val_fraction, seed=config.seed))
    parts = {
        name: _compose(config, part, name=name, count=count)
        for name, part, count in (("train", sources.train, config.scenes), ("val", sources.val, config.val_scenes))
    }
    note = (
        f"composed of {len(sources.train):,} images for training and {len(sources.val):,} others for what is held out"
    )
    return BoxedImages(name=f"scenes of {sources.name}", classes=sources.classes, **parts, notes=(note,))


def _compose(config: SceneConfig, sources: ImageSet, *, name: str, count: int) -> BoxedSet:
    drawn = [scene(config, sources, generator=generator_of(config.seed, f"{name}/{index}")) for index in range(count)]
    images, boxes, labels = zip(*drawn, strict=True)
    objects = join(boxes, labels)
    return BoxedSet(images=torch.stack(images), objects=objects, crowd=torch.zeros(len(objects.labels)).bool())


def scene(config: SceneConfig, sources: ImageSet, *, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """One scene: some images at random sizes and places, hardly over one another.

    An object for which no free place is found in a few tries is left out, so that a full scene may have fewer than
    drawn.

    Returns:
        uint8 (C, H, H); boxes (m, 4) around what is visible of each object alone; labels int64 (m,).

    Example:
        >>> from mixtura.train.data.images import read_images
        >>> sources = read_images(ImageConfig()).train
        >>> pixels, boxes, labels = scene(SceneConfig(), sources, generator=torch.Generator().manual_seed(0))
        >>> pixels.shape, len(boxes) == len(labels) >= 1
        (torch.Size([1, 64, 64]), True)
    """
    size = config.image_size
    canvas = torch.zeros(sources.images.shape[1], size, size, dtype=torch.uint8)
    number = int(torch.randint(config.fewest, config.most + 1, (), generator=generator))
    places = torch.randint(0, len(sources), (number,), generator=generator).tolist()
    draws = torch.rand(number, 1 + 2 * _TRIES, generator=generator).tolist()
    boxes: list[tuple[int, int, int, int]] = []
    labels = []
    for place, (scale, *corners) in zip(places, draws, strict=True):
        longest = round(config.smallest * (config.largest / config.smallest) ** scale)
        patch = _object(sources.images[place], longest=longest)
        height, width = patch.shape[1:]
        tries = zip(corners[::2], corners[1::2], strict=True)
        spots = ((int(x * (size - width + 1)), int(y * (size - height + 1))) for x, y in tries)
        free = ((x, y, x + width, y + height) for x, y in spots)
        box = next((box for box in free if all(_hidden(box, other) <= _HIDDEN for other in boxes)), None)
        if box is not None:
            here = canvas[:, box[1] : box[3], box[0] : box[2]]
            torch.maximum(here, patch, out=here)
            boxes.append(box)
            labels.append(int(sources.labels[place]))
    return canvas, torch.tensor(boxes, dtype=torch.float32).view(-1, 4), torch.tensor(labels, dtype=torch.long)


def _object(image: Tensor, *, longest: int) -> Tensor:
    """What is visible of an image, scaled so that its longest side has so many pixels: uint8 (C, h, w)."""
    seen = image.amax(0) >= _SEEN
    rows, columns = (seen.any(axis).nonzero().view(-1).tolist() for axis in (1, 0))
    last = image.shape[1] - 1
    # An image without anything visible is an object all the same: it has a label.
    top, bottom, left, right = (rows[0], rows[-1], columns[0], columns[-1]) if rows else (0, last, 0, last)
    cut = image[:, top : bottom + 1, left : right + 1].float()
    share = longest / max(cut.shape[1:])
    size = [max(1, round(side * share)) for side in cut.shape[1:]]
    scaled = F.interpolate(cut[None], size=size, mode="bilinear", align_corners=False, antialias=share < 1)
    return scaled[0].round().clamp(0, 255).to(torch.uint8)


def _hidden(a: tuple[int, ...], b: tuple[int, ...]) -> float:
    """What two boxes share, as a share of the smaller one."""
    width, height = (min(a[i + 2], b[i + 2]) - max(a[i], b[i]) for i in (0, 1))
    smaller = min((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return max(0, width) * max(0, height) / smaller


def _check_classes(images: BoxedImages) -> None:
    for part, where in ((images.train, "to train on"), (images.val, "held out")):
        if not len(part.learned().labels):
            raise UserError(f"{images.name}: expected boxes {where}, got none in {len(part)} images; annotate some")
    counts = images.train.learned().labels.bincount(minlength=len(images.classes))
    share, label = (counts / counts.sum()).max(0)
    if len(images.classes) > 1 and share > _ONE_CLASS:
        warnings.warn(
            f"expected boxes of several classes, got {float(share):.0%} of them in {images.classes[int(label)]!r}: a "
            "detector that always says so looks good; look at the average precision of each class",
            stacklevel=3,
        )
