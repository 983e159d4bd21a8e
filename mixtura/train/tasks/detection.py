"""Object detection: a single-stage detector on images with boxes, with experts told apart by class and by scale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from mixtura.errors import UserError
from mixtura.models.detector import Detector, DetectorConfig
from mixtura.models.objects import Detections, Grid, Output, assign, detect, detection_losses
from mixtura.train.config import TrainConfig
from mixtura.train.data.boxed import BoxedBatch, BoxedImages, BoxedStream, in_order
from mixtura.train.data.scenes import SceneConfig, read_scenes
from mixtura.train.tasks.image_task import check_sizes
from mixtura.train.tasks.task import Evaluation, Outcome, Say, Task, Units, autocast, device_of

if TYPE_CHECKING:
    from pathlib import Path

    from mixtura.train.tasks.precision import Precision

SMALL = 4  # an object is small up to the area of a square of 1/4 of the image's side


@dataclass(frozen=True, kw_only=True)
class DetectionConfig(TrainConfig):
    """A run of an object detector.

    Raises:
        UserError: a value out of its range.

    Example:
        >>> DetectionConfig(steps=100).data.image_size
        64
    """

    task: ClassVar[str] = "detection"
    units: ClassVar[Units] = Units(loss="focal + GIoU per cell", items="images", group="class")

    model: DetectorConfig = field(default_factory=DetectorConfig)
    data: SceneConfig = field(default_factory=SceneConfig)
    box_weight: float = 1.0
    """Weight of the boxes' loss beside that of the classes."""
    threshold: float = 0.05
    """Score from which on something counts as found."""
    most_overlap: float = 0.6
    """Of two boxes of one class that overlap more (intersection over union), only the better one is kept."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.box_weight > 0:
            raise UserError(f"box_weight: expected more than 0, got {self.box_weight}")
        for name in ("threshold", "most_overlap"):
            if not 0 < getattr(self, name) < 1:
                raise UserError(f"{name}: expected more than 0 and less than 1, got {getattr(self, name)}")

    def check(self) -> None:
        """Refuse sizes that belong to the data, and to train without what will judge the detections.

        Example:
            >>> DetectionConfig(model=DetectorConfig(num_classes=7)).check()
            Traceback (most recent call last):
            ...
            mixtura.errors.UserError: expected no --model.num-classes, got 7; it comes from the data
        """
        from mixtura.train.setup import require  # late: it imports what configurations import

        check_sizes(self.model)
        require("pycocotools")

    def build_model(self) -> Detector:
        """A detector with fresh weights.

        Example:
            >>> DetectionConfig().build_model().config.num_experts
            8
        """
        return Detector(self.model)

    def detect(self, output: Output, *, size: int) -> list[Detections]:
        """The objects in each image of a batch, of images with sides of `size` pixels."""
        return detect(output, size=(size, size), threshold=self.threshold, most_overlap=self.most_overlap)

    def prepare(self, *, on_progress: Say | None = None) -> DetectionTask:  # noqa: ARG002  # reading takes seconds
        """Read the images and boxes, and fit the model's sizes to them."""
        return DetectionTask.of(self, read_scenes(self.data))


@dataclass(frozen=True, kw_only=True)
class DetectionTask(Task):
    """Images whose objects are to be found.

    Args:
        config: of the run.
        images: the data.
    """

    config: DetectionConfig
    images: BoxedImages

    @classmethod
    def of(cls, config: DetectionConfig, images: BoxedImages) -> DetectionTask:
        """The task whose model's channels and classes are those of the data."""
        model = replace(config.model, channels=images.channels, num_classes=len(images.classes))
        return cls(config=replace(config, model=model), images=images)

    @property
    def name(self) -> str:
        """Changes with any pixel, box or label."""
        return self.images.fingerprint

    def summary(self) -> Sequence[str]:
        """A line for each class, and what is in the data besides."""
        size, lost = self.images.image_size, 0
        for part in in_order(self.images.train, batch_size=64):
            objects = part.learned()
            owner = assign(objects, Grid.of(size, size), images=len(part))
            lost += len(objects.labels) - len(owner[owner >= 0].unique())
        more = [f"boxes that no cell learns, since smaller ones have all of theirs: {lost:,}"] if lost else []
        return [*self.images.report(), *more]

    def save(self, folder: Path) -> None:
        """Write the classes' names, one a line."""
        (folder / "classes.txt").write_text("".join(f"{name}\n" for name in self.images.classes), encoding="utf-8")

    def stream(self, *, rank: int = 0, world_size: int = 1) -> BoxedStream:
        """Training images, mirrored by chance where asked for."""
        data = self.config.data
        sizes = {"batch_size": data.batch_size, "seed": data.seed, "rank": rank, "world_size": world_size}
        return BoxedStream(self.images, flip=data.flip, **sizes)

    def loss(self, model: nn.Module, batch: BoxedBatch) -> Outcome:
        """Focal loss of the classes and 1 - GIoU of the boxes, for each cell that learns an object."""
        batch = batch.to(device_of(model))
        losses = detection_losses(model(batch.images), batch.objects)
        cells = losses.cells.sum().clamp(min=1)
        by_class, boxes = losses.by_class.sum(), losses.boxes.sum()
        total = by_class + self.config.box_weight * boxes
        parts = {"classes": by_class / cells, "boxes": boxes / cells}
        return Outcome(loss=total / cells, total=total.detach(), weight=cells, items=len(batch.images), parts=parts)

    def found(self, model: nn.Module) -> tuple[list[Detections], Tensor]:
        """What is found in each held-out image, and the loss of each class there: (classes,)."""
        device, number = device_of(model), len(self.images.classes)
        found: list[Detections] = []
        lost, cells = torch.zeros(2, number, dtype=torch.float64).unbind()
        for part in in_order(self.images.val, batch_size=self.config.data.batch_size):
            batch = BoxedBatch.of(part).to(device)
            with autocast(self.config, device):
                output = model(batch.images)
            losses = detection_losses(output, batch.objects)
            lost += (losses.by_class + self.config.box_weight * losses.boxes).double().cpu()
            cells += losses.cells.double().cpu()
            found += self.config.detect(output, size=self.images.image_size)
        return found, lost / cells.clamp(min=1)

    def precision(self, found: Sequence[Detections]) -> Precision:
        """Average precision of what was found in the held-out images."""
        from mixtura.train.tasks.precision import average_precision  # late: pycocotools is optional

        small = (self.images.image_size / SMALL) ** 2
        return average_precision(self.images.val, found, classes=len(self.images.classes), small=small)

    def evaluate(self, model: nn.Module) -> Evaluation:
        """Loss on held-out images by class; mean average precision: whole, at 0.5, of small, of large ones."""
        found, losses = self.found(model)
        by_class = dict(zip(self.images.classes, losses.tolist(), strict=True))
        return Evaluation(losses=by_class, scores=self.precision(found).scores())

    def observe(self, model: nn.Module) -> dict[str, Any]:
        """Experts by class and by scale, precision by class and size, and what is found in some images."""
        from mixtura.train.tasks.detected import look  # late: chains of imports stay short

        return look(model, self)
