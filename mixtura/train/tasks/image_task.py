"""What every kind of training on labelled images shares: sizes that the data decide, streams, names of classes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from mixtura.errors import UserError
from mixtura.models.blocks import PatchesConfig
from mixtura.train.data.image_stream import ImageBatch, ImageStream, in_order
from mixtura.train.data.images import ImageConfig, Images
from mixtura.train.tasks.task import Task

if TYPE_CHECKING:
    from pathlib import Path

Sizes = TypeVar("Sizes", bound=PatchesConfig)
_SEEN = 64  # images of each class that the report looks at


def check_sizes(model: object) -> None:
    """Refuse sizes that belong to the data.

    Raises:
        UserError: one differs from what a recipe has.

    Example:
        >>> check_sizes(PatchesConfig(image_size=0, num_classes=7))
        Traceback (most recent call last):
        ...
        mixtura.errors.UserError: expected no --model.num-classes, got 7; it comes from the data
    """
    for name, unknown in (("num_classes", 10), ("channels", 1), ("image_size", 0)):
        if (given := getattr(model, name, unknown)) != unknown:
            option = name.replace("_", "-")
            raise UserError(f"expected no --model.{option}, got {given}; it comes from the data")


def sizes_to_try(model: Sizes) -> Sizes:
    """The configuration; where no data were read yet, with images of one patch, so that the rest can be tried.

    Example:
        >>> sizes_to_try(PatchesConfig(image_size=0, patch_size=3)).patches
        1
    """
    return model if model.image_size else replace(model, image_size=model.patch_size)


def fitted(model: Sizes, images: Images) -> Sizes:
    """The configuration with the image size, channels and classes of the data.

    Raises:
        UserError: a class has the name under which the mean over all is logged; patches that do not fit.

    Example:
        >>> from mixtura.train.data.images import read_images
        >>> fitted(PatchesConfig(image_size=0, patch_size=2), read_images(ImageConfig())).patches
        16
    """
    if "mean" in images.classes:
        raise UserError("expected classes of any name but 'mean', which is the mean over all; rename that folder")
    size, patch = images.image_size, model.patch_size
    if size % patch:
        divisors = [n for n in range(1, size + 1) if size % n == 0]
        raise UserError(
            f"expected --model.patch-size that divides the {size} pixels of the images, got {patch}; "
            f"{min(divisors, key=lambda n: abs(n - patch))} does"
        )
    return replace(model, image_size=size, channels=images.channels, num_classes=len(images.classes))


@dataclass(frozen=True, kw_only=True)
class ImageTask(Task):
    """Labelled images.

    Args:
        images: the data.
    """

    images: Images

    @property
    def data(self) -> ImageConfig:
        """How the images are read and changed."""
        data: ImageConfig = self.config.data  # type: ignore[attr-defined]  # every configuration of these tasks has it
        return data

    @property
    def name(self) -> str:
        """Changes with any pixel or label."""
        return self.images.fingerprint

    def summary(self) -> Sequence[str]:
        """A line for each class, and one for all."""
        return self.images.report()

    def save(self, folder: Path) -> None:
        """Write the classes' names, one a line."""
        (folder / "classes.txt").write_text("".join(f"{name}\n" for name in self.images.classes), encoding="utf-8")

    def stream(self, *, rank: int = 0, world_size: int = 1) -> ImageStream:
        """Training images, changed by chance."""
        data = self.data
        return ImageStream(
            self.images,
            batch_size=data.batch_size,
            seed=data.seed,
            crop=data.crop,
            flip=data.flip,
            rank=rank,
            world_size=world_size,
        )

    def of_class(self, label: int) -> Iterator[ImageBatch]:
        """Some held-out images of a class."""
        places = (self.images.val.labels == label).nonzero().view(-1)[:_SEEN]
        return in_order(self.images.val.part(places), batch_size=self.data.batch_size)
