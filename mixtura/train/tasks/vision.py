"""Image classification: a ViT on labelled images, with each mixture's experts told apart by class and by patch."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812  # torch's own customary name

from mixtura.errors import UserError
from mixtura.models.vit import ViT, ViTConfig
from mixtura.observe.record import counts_by_group
from mixtura.train.config import TrainConfig
from mixtura.train.data.image_stream import ImageBatch, in_order
from mixtura.train.data.images import ImageConfig, Images, read_images
from mixtura.train.tasks.image_task import ImageTask, check_sizes, fitted, sizes_to_try
from mixtura.train.tasks.task import Evaluation, Outcome, Said, Say, Units, autocast, device_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class VisionConfig(TrainConfig):
    """A run of an image classifier.

    Raises:
        UserError: a value out of its range.

    Example:
        >>> VisionConfig(steps=100).data.batch_size
        64
    """

    task: ClassVar[str] = "vision"
    units: ClassVar[Units] = Units(loss="nats/image", items="images", group="class")

    model: ViTConfig = field(default_factory=lambda: ViTConfig(image_size=0))
    data: ImageConfig = field(default_factory=ImageConfig)
    label_smoothing: float = 0.1
    """Share of each label that is spread over all classes, in training."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.label_smoothing < 1:
            raise UserError(f"label_smoothing: expected 0 or more and less than 1, got {self.label_smoothing}")

    def check(self) -> None:
        """Refuse sizes that belong to the data.

        Example:
            >>> VisionConfig(model=ViTConfig(image_size=0, num_classes=7)).check()
            Traceback (most recent call last):
            ...
            mixtura.errors.UserError: expected no --model.num-classes, got 7; it comes from the data
        """
        check_sizes(self.model)

    def build_model(self) -> ViT:
        """A ViT with fresh weights.

        Example:
            >>> VisionConfig().build_model().config.num_experts
            8
        """
        return ViT(sizes_to_try(self.model))

    def prepare(self, *, on_progress: Say | None = None) -> VisionTask:  # noqa: ARG002  # reading takes a second
        """Read the images, and fit the model's sizes to them."""
        return VisionTask.of(self, read_images(self.data))

    def predict(self, model: nn.Module, data: str, *, folder: Path) -> Said:
        """Each image's class; see `mixtura.train.tasks.unlabelled.images`."""
        from mixtura.train.tasks.unlabelled import images  # late: chains of imports stay short

        return images(model, self, data, folder=folder)


@dataclass(frozen=True, kw_only=True)
class VisionTask(ImageTask):
    """Labelled images to be told apart.

    Args:
        config: of the run.
        images: the data.
    """

    config: VisionConfig

    @classmethod
    def of(cls, config: VisionConfig, images: Images) -> VisionTask:
        """The task whose model's image size, channels and classes are those of the data; see `fitted`."""
        return cls(config=replace(config, model=fitted(config.model, images)), images=images)

    def loss(self, model: nn.Module, batch: ImageBatch) -> Outcome:
        """Cross-entropy of the class, smoothed in training."""
        batch = batch.to(device_of(model))
        smoothing = self.config.label_smoothing if model.training else 0.0
        logits = model(batch.images).float()
        loss = F.cross_entropy(logits, batch.labels_B, label_smoothing=smoothing)
        hits = (logits.argmax(1) == batch.labels_B).float().mean()
        return Outcome.mean(loss, len(batch.labels_B), parts={"accuracy": hits})

    def evaluate(self, model: nn.Module) -> Evaluation:
        """Nats per held-out image by class; the accuracy, and that of the worst class."""
        device, number = device_of(model), len(self.images.classes)
        nats, hits, counts = torch.zeros(3, number, dtype=torch.float64).unbind()
        for batch in in_order(self.images.val, batch_size=self.config.data.batch_size):
            with autocast(self.config, device):
                logits = model(batch.images.to(device)).float().cpu()
            nats_B = F.cross_entropy(logits, batch.labels_B, reduction="none").double()
            nats.index_add_(0, batch.labels_B, nats_B)
            hits.index_add_(0, batch.labels_B, (logits.argmax(1) == batch.labels_B).double())
            counts += batch.labels_B.bincount(minlength=number)
        losses = dict(zip(self.images.classes, (nats / counts).tolist(), strict=True))
        scores = {"accuracy": float(hits.sum() / counts.sum()), "worst class": float((hits / counts).min())}
        return Evaluation(losses=losses, scores=scores)

    def observe(self, model: nn.Module) -> dict[str, Any]:
        """Experts by class, and which patches of some images go to which expert."""
        from mixtura.train.tasks.patches import patch_panels  # late: chains of imports stay short

        assert isinstance(model, ViT)
        device = device_of(model)

        def forwards(label: int) -> Iterator[object]:
            return (model(batch.images.to(device)) for batch in self.of_class(label))

        seen = counts_by_group(model, {name: forwards(label) for label, name in enumerate(self.images.classes)})
        return seen | {"panels": patch_panels(model, self.images)}
