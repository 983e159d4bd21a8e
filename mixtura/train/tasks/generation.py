"""Image generation: a DiT that learns to draw labelled images, with experts told apart by class and by noise."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from mixtura.errors import UserError
from mixtura.models.dit import DiT, DiTConfig, flow_loss, sample
from mixtura.observe.panels import picture
from mixtura.observe.record import counts_by_group
from mixtura.train.config import TrainConfig
from mixtura.train.data.image_stream import ImageBatch, in_order
from mixtura.train.data.images import ImageConfig, Images, read_images
from mixtura.train.tasks.image_task import ImageTask, check_sizes, fitted, sizes_to_try
from mixtura.train.tasks.patches import grid, png
from mixtura.train.tasks.task import Evaluation, Outcome, Say, Units, autocast, device_of

if TYPE_CHECKING:
    from collections.abc import Iterator

_LEVELS = 5  # of noise, that the report tells apart
_EACH = 8  # images of each class in the report's grid
_MOST_CLASSES = 20


@dataclass(frozen=True, kw_only=True)
class GenerationConfig(TrainConfig):
    """A run of an image generator.

    Raises:
        UserError: a value out of its range.

    Example:
        >>> GenerationConfig(steps=100).guidance
        1.5
    """

    task: ClassVar[str] = "generation"
    units: ClassVar[Units] = Units(loss="squared error", items="images", group="class")

    model: DiTConfig = field(default_factory=lambda: DiTConfig(image_size=0))
    data: ImageConfig = field(default_factory=ImageConfig)
    unlabelled: float = 0.1
    """Share of the training images whose class is not told, so that the model learns to draw without one too."""
    guidance: float = 1.5
    """How far samples go from what is drawn without a class to what is drawn with it; 1: just with it."""
    sample_steps: int = 20
    """Steps from noise to a sample."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.unlabelled < 1:
            raise UserError(f"unlabelled: expected 0 or more and less than 1, got {self.unlabelled}")
        if self.sample_steps < 1:
            raise UserError(f"sample_steps: expected at least 1, got {self.sample_steps}")
        if not 0 <= self.guidance <= 100:
            raise UserError(f"guidance: expected 0 to 100, got {self.guidance}")

    def check(self) -> None:
        """Refuse sizes that belong to the data."""
        check_sizes(self.model)

    def build_model(self) -> DiT:
        """A DiT with fresh weights.

        Example:
            >>> GenerationConfig().build_model().config.num_experts
            8
        """
        return DiT(sizes_to_try(self.model))

    def prepare(self, *, on_progress: Say | None = None) -> GenerationTask:  # noqa: ARG002  # reading takes a second
        """Read the images, and fit the model's sizes to them."""
        return GenerationTask.of(self, read_images(self.data))


@dataclass(frozen=True, kw_only=True)
class GenerationTask(ImageTask):
    """Labelled images to draw more of.

    Args:
        config: of the run.
        images: the data.
    """

    config: GenerationConfig

    @classmethod
    def of(cls, config: GenerationConfig, images: Images) -> GenerationTask:
        """The task whose model's image size, channels and classes are those of the data; see `fitted`."""
        return cls(config=replace(config, model=fitted(config.model, images)), images=images)

    def loss(self, model: nn.Module, batch: ImageBatch) -> Outcome:
        """Squared error of the velocity at a random time; some labels are withheld."""
        batch = batch.to(device_of(model))
        images, label_B = batch.images, batch.labels_B
        draw_B2 = torch.rand(len(images), 2, device=images.device)
        label_B = label_B.where(draw_B2[:, 1] >= self.config.unlabelled, len(self.images.classes))
        loss = flow_loss(model, images, label_B, time_B=draw_B2[:, 0], noise=torch.randn_like(images)).mean()
        return Outcome.mean(loss, len(images))

    def evaluate(self, model: nn.Module) -> Evaluation:
        """Squared error by class on held-out images, with the same times and noise every time."""
        device, number = device_of(model), len(self.images.classes)
        errors, counts = torch.zeros(2, number, dtype=torch.float64).unbind()
        generator = torch.Generator().manual_seed(0)
        for batch in in_order(self.images.val, batch_size=self.data.batch_size):
            time_B = torch.rand(len(batch.labels_B), generator=generator).to(device)
            noise = torch.randn(batch.images.shape, generator=generator).to(device)
            here = batch.to(device)
            with autocast(self.config, device):
                error_B = flow_loss(model, here.images, here.labels_B, time_B=time_B, noise=noise)
            errors.index_add_(0, batch.labels_B, error_B.double().cpu())
            counts += batch.labels_B.bincount(minlength=number)
        return Evaluation(losses=dict(zip(self.images.classes, (errors / counts).tolist(), strict=True)))

    def observe(self, model: nn.Module) -> dict[str, Any]:
        """Experts by class and by noise, and samples of every class."""
        assert isinstance(model, DiT)
        by_class = {name: self._forwards(model, label=label) for label, name in enumerate(self.images.classes)}
        levels = {f"{n / _LEVELS:.1f}-{(n + 1) / _LEVELS:.1f}": (n + 0.5) / _LEVELS for n in range(_LEVELS)}
        by_time = counts_by_group(model, {name: self._forwards(model, time=time) for name, time in levels.items()})
        return counts_by_group(model, by_class) | {"panels": [*_maps(by_time), self._samples(model)]}

    def _forwards(self, model: DiT, *, label: int | None = None, time: float | None = None) -> Iterator[object]:
        """Passes over held-out images of one class at all times, or of all classes at one time."""
        device, generator = device_of(model), torch.Generator().manual_seed(0)
        labels = range(len(self.images.classes)) if label is None else [label]
        for batch in (batch for number in labels for batch in self.of_class(number)):
            time_B = torch.rand(len(batch.labels_B), generator=generator)
            time_B = time_B if time is None else torch.full_like(time_B, time)
            t, noise = time_B.view(-1, 1, 1, 1), torch.randn(batch.images.shape, generator=generator)
            mixed = (1 - t) * noise + t * batch.images
            yield model(mixed.to(device), time_B.to(device), batch.labels_B.to(device))

    def _samples(self, model: DiT) -> dict[str, Any]:
        config, number = self.config, min(len(self.images.classes), _MOST_CLASSES)
        label_B = torch.arange(number).repeat_interleave(_EACH).to(device_of(model))
        generator = torch.Generator(label_B.device).manual_seed(config.seed)
        drawn = sample(model, label_B, steps=config.sample_steps, guidance=config.guidance, generator=generator)
        note = f"{_EACH} of each class, row by row: {', '.join(self.images.classes[:number])}."
        return picture("Samples", png(grid(as_bytes(drawn).cpu(), columns=_EACH)), note=note)


def as_bytes(images: Tensor) -> Tensor:
    """Numbers from -1 to 1 as uint8.

    Example:
        >>> as_bytes(torch.tensor([-1.0, 1.0, torch.nan])).tolist()
        [0, 255, 0]
    """
    return ((images.nan_to_num(-1.0).clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def _maps(counts: dict[str, Any]) -> list[dict[str, Any]]:
    """A heat map for each mixture: the share of each expert at each level of noise."""
    panels = []
    for name, layer in counts["layers"].items():
        shares = torch.tensor(layer["counts"], dtype=torch.float64)
        shares = shares / shares.sum(1, keepdim=True).clamp(min=1)
        panels.append(
            {
                "kind": "heatmap",
                "title": f"Experts by noise, {name}",
                "note": "Share of each expert in the patches at times from 0 (noise) to 1 (image).",
                "rows": counts["domains"],
                "columns": [str(expert) for expert in range(shares.shape[1])],
                "values": [[round(value, 4) for value in row] for row in shares.tolist()],
                "axis": "expert",
            }
        )
    return panels
