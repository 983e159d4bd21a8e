"""What a detector found, and which experts looked: tables, heat maps and pictures of the report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mixtura.models.objects import STRIDES, Detections, Grid, Objects, assign
from mixtura.observe.panels import picture
from mixtura.observe.record import record
from mixtura.train.data.boxed import BoxedBatch, in_order
from mixtura.train.tasks.patches import grid, png
from mixtura.train.tasks.task import device_of

if TYPE_CHECKING:
    from mixtura.train.tasks.detection import DetectionTask
    from mixtura.train.tasks.precision import Precision

BACKGROUND = "background"
_SHOWN = 8  # scenes in the picture
_SURE = 0.3  # score from which on a box is drawn
_COLUMNS = 4
_SIDE = 256  # pixels of the picture for an image, about
_TRUE, _FOUND = (60, 180, 90), (255, 150, 0)


@torch.no_grad()
def look(model: nn.Module, task: DetectionTask) -> dict[str, Any]:
    """Everything the report shows of a detector in evaluation mode; see `mixtura.observe.observations`."""
    found, _ = task.found(model)
    counts = experts_of_cells(model, task)
    names = [*task.images.classes, BACKGROUND]
    layers = {name: {"counts": each.sum(0).tolist()} for name, each in counts.items()}
    maps = [_by_scale(name, each) for name, each in counts.items()]
    panels = [_scenes(task, found), _table(task, task.precision(found)), *maps]
    return {"domains": names, "layers": layers, "panels": panels}


def experts_of_cells(model: nn.Module, task: DetectionTask) -> dict[str, Tensor]:
    """How often each mixture's first choice is each expert, for the held-out images' cells.

    Returns:
        by layer int64 (maps, classes + 1, E): by the map of the cell and the class that it learns, background last.
    """
    device, groups = device_of(model), len(task.images.classes) + 1
    counts: dict[str, Tensor] = {}
    for part in in_order(task.images.val, batch_size=task.config.data.batch_size):
        batch = BoxedBatch.of(part).to(device)
        with record(model) as log:
            output = model(batch.images)
        group_BL = output.grid.level * groups + _class_of(batch.objects, output.grid, images=len(part), none=groups - 1)
        for name, (seen,) in log.items():
            number = seen.routing.num_experts
            first_T = seen.first_choice_T()
            has_one = (first_T >= 0) & (first_T < number)
            pair_T = (group_BL.reshape(-1) * number + first_T)[has_one]
            here = pair_T.bincount(minlength=len(STRIDES) * groups * number).view(len(STRIDES), groups, number).cpu()
            counts[name] = counts.get(name, 0) + here
    return counts


def _class_of(objects: Objects, grid: Grid, *, images: int, none: int) -> Tensor:
    """The class that each cell learns: int64 (B, L)."""
    owner_BL = assign(objects, grid, images=images)
    label_M1 = torch.cat([objects.labels, objects.labels.new_full((1,), none)])
    return label_M1[owner_BL]  # -1 is the last


def _by_scale(name: str, counts: Tensor) -> dict[str, Any]:
    """A heat map of the experts by the map of a cell, those of objects and of background apart."""
    rows, groups = [], []
    for level, stride in enumerate(STRIDES):
        rows += [f"{stride} pixels, object", f"{stride} pixels, background"]
        groups += [counts[level, :-1].sum(0), counts[level, -1]]
    shares = torch.stack([*groups, counts.sum((0, 1))]).double()
    shares /= shares.sum(1, keepdim=True).clamp(min=1)
    return {
        "kind": "heatmap",
        "title": f"Experts by scale, {name}",
        "note": "Share of each expert in the cells of each map, by what the cell learns; last row: of all cells.",
        "rows": [*rows, "all cells"],
        "columns": [str(expert) for expert in range(shares.shape[1])],
        "values": [[round(value, 4) for value in row] for row in shares.tolist()],
        "axis": "expert",
    }


def _table(task: DetectionTask, precision: Precision) -> dict[str, Any]:
    """Average precision by class and size."""
    boxes = task.images.val.learned().labels.bincount(minlength=len(task.images.classes))
    columns = [precision.mean[:, 0], precision.half[:, 0], precision.mean[:, 1], precision.mean[:, 2]]
    values = torch.stack(columns, dim=1)
    rows = [
        [name, int(count), *_shown(row)] for name, count, row in zip(task.images.classes, boxes, values, strict=True)
    ]
    rows.append(["mean", int(boxes.sum()), *_shown(values.nanmean(0))])
    note = "Held-out images; over the overlaps 0.50 to 0.95, at 0.50, and of small and large objects."
    titles = ["class", "boxes", "AP", "AP at 0.50", "AP small", "AP large"]
    return {"kind": "table", "title": "Average precision", "note": note, "columns": titles, "rows": rows}


def _shown(values: Tensor) -> list[float | None]:
    return [None if value.isnan() else round(float(value), 4) for value in values]


def _scenes(task: DetectionTask, found: list[Detections]) -> dict[str, Any]:
    """Some held-out images, with what is there in one colour and what was found in others."""
    images, classes, tiles, told = task.images, task.images.classes, [], []
    part = images.val.part(torch.arange(min(_SHOWN, len(images.val))))
    objects = part.learned()
    scale = max(1, _SIDE // images.image_size)
    for number, each in enumerate(found[: len(part)]):
        here = objects.image == number
        sure = each.scores >= _SURE
        tile = part.images[number].expand(3, -1, -1).repeat_interleave(scale, 1).repeat_interleave(scale, 2).clone()
        draw(tile, objects.boxes[here] * scale, colour=_TRUE)
        draw(tile, each.boxes[sure] * scale, colour=_FOUND)
        tiles.append(tile)
        said = [
            f"{classes[label]} {score:.2f}" for label, score in zip(each.labels[sure], each.scores[sure], strict=True)
        ]
        true = [classes[label] for label in objects.labels[here]]
        told.append(f"{number + 1}: {', '.join(true) or 'nothing'}; found: {', '.join(said) or 'nothing'}")
    columns = min(_COLUMNS, len(tiles))
    blank = [torch.full_like(tiles[0], 255)] * (-len(tiles) % columns)
    note = (
        f"Green: what is there; orange: what is found with a score of at least {_SURE}. Row by row, {'. '.join(told)}."
    )
    return picture(
        "Found in held-out images", png(grid(torch.stack([*tiles, *blank]), columns=columns, scale=1)), note=note
    )


def draw(image: Tensor, boxes: Tensor, *, colour: tuple[int, int, int]) -> None:
    """Outline boxes in an image, in place: uint8 (3, H, W); boxes (m, 4) in its pixels.

    Example:
        >>> image = torch.zeros(3, 4, 4, dtype=torch.uint8)
        >>> draw(image, torch.tensor([[0.0, 0.0, 3.0, 3.0]]), colour=(1, 1, 1))
        >>> image[0].tolist()
        [[1, 1, 1, 0], [1, 0, 1, 0], [1, 1, 1, 0], [0, 0, 0, 0]]
    """
    paint, (height, width) = torch.tensor(colour, dtype=torch.uint8)[:, None], image.shape[1:]
    for left, top, right, bottom in boxes.round().long().tolist():
        right, bottom = min(right, width) - 1, min(bottom, height) - 1
        for row in (top, bottom):
            image[:, row, left : right + 1] = paint
        for column in (left, right):
            image[:, top : bottom + 1, column] = paint
