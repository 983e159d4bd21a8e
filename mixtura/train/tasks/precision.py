"""Average precision of detections by pycocotools, the COCO challenge's own measure; import it late, it is optional."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from math import isnan
from typing import Any

import torch
from torch import Tensor

from mixtura.errors import UserError
from mixtura.models.objects import Detections
from mixtura.train.data.boxed import BoxedSet

try:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval
except ImportError as error:
    raise UserError("judging detections needs pycocotools; run: pip install 'mixtura[detect]'") from error

SIZES = ("all", "small", "large")


@dataclass(frozen=True, kw_only=True)
class Precision:
    """Average precision by class, NaN for a class without objects.

    Attributes:
        mean: (classes, 3), over the overlaps 0.50, 0.55 ... 0.95; of all objects, the small and the large ones.
        half: (classes, 3), at an overlap of 0.50.

    Example:
        >>> values = torch.tensor([[0.5, 0.2, 0.8], [torch.nan] * 3])
        >>> Precision(mean=values, half=values).scores()["mAP small"]
        0.2
    """

    mean: Tensor
    half: Tensor

    def scores(self) -> dict[str, float]:
        """Means over the classes that have objects; a size without any has no score."""
        named = {"mAP": self.mean[:, 0], "mAP50": self.half[:, 0], "mAP small": self.mean[:, 1]}
        means = {name: float(values.nanmean()) for name, values in (named | {"mAP large": self.mean[:, 2]}).items()}
        return {name: round(value, 6) for name, value in means.items() if not isnan(value)}


def average_precision(truth: BoxedSet, found: Sequence[Detections], *, classes: int, small: float) -> Precision:
    """Compare what was found with what is there.

    Args:
        truth: N images with their objects; crowds as COCO has them.
        found: of each image, boxes in the same pixels.
        classes: how many.
        small: area in pixels up to which an object is small.

    Example:
        >>> from mixtura.models.objects import Objects
        >>> one, box = torch.zeros(1, dtype=torch.long), torch.tensor([[0.0, 0.0, 4.0, 4.0]])
        >>> images = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
        >>> objects = Objects(boxes=box, labels=one, image=one)
        >>> truth = BoxedSet(images=images, objects=objects, crowd=torch.tensor([False]))
        >>> found = [Detections(boxes=box, scores=torch.tensor([0.9]), labels=one, cell=one)]
        >>> average_precision(truth, found, classes=1, small=100.0).scores()
        {'mAP': 1.0, 'mAP50': 1.0, 'mAP small': 1.0}
    """
    o = truth.objects
    there = _entries(o.boxes, o.labels, o.image, more={"iscrowd": truth.crowd.int().tolist()})
    image_N = torch.arange(len(found)).repeat_interleave(torch.tensor([len(each.scores) for each in found]))
    boxes, labels, scores = (
        torch.cat([getattr(each, name) for each in found]) for name in ("boxes", "labels", "scores")
    )
    said = _entries(boxes, labels, image_N, more={"score": scores.tolist()})
    with redirect_stdout(StringIO()):  # it prints what it does
        judge = COCOeval(*(_coco(entries, images=len(truth), classes=classes) for entries in (there, said)), "bbox")
        judge.params.areaRng = [[0, 1e10], [0, small], [small, 1e10]]
        judge.params.areaRngLbl = list(SIZES)
        judge.params.maxDets = [100]
        judge.evaluate()
        judge.accumulate()
    # (overlaps, recalls, classes, sizes, 1), -1 where there is no object
    precision = torch.from_numpy(judge.eval["precision"])[..., 0]
    precision = precision.masked_fill(precision < 0, torch.nan).mean(1)
    return Precision(mean=precision.mean(0), half=precision[0])


def _entries(boxes: Tensor, labels: Tensor, image: Tensor, *, more: dict[str, list[Any]]) -> list[dict[str, Any]]:
    sides = torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], dim=1).tolist()
    rows = zip(sides, labels.tolist(), image.tolist(), *more.values(), strict=True)
    return [
        # ids from 1: it takes 0 for "no match"
        {
            "id": place + 1,
            "bbox": box,
            "area": box[2] * box[3],
            "category_id": label,
            "image_id": image_id,
            "iscrowd": 0,
        }
        | dict(zip(more, rest, strict=True))
        for place, (box, label, image_id, *rest) in enumerate(rows)
    ]


def _coco(entries: list[dict[str, Any]], *, images: int, classes: int) -> Any:
    coco = COCO()
    coco.dataset = {
        "images": [{"id": number} for number in range(images)],
        "categories": [{"id": number} for number in range(classes)],
        "annotations": entries,
    }
    coco.createIndex()
    return coco
