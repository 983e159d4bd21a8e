"""Boxes of objects: how far two overlap, losses of detectors, and which of many that overlap are kept.

Shapes here: M boxes as (left, top, right, bottom) in pixels, N others. Boxes have right > left and bottom > top.
"""

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  # torch's own customary name


def areas(boxes: Tensor) -> Tensor:
    """Width times height: (..., 4) -> (...).

    Example:
        >>> areas(torch.tensor([[0.0, 1.0, 2.0, 4.0]]))
        tensor([6.])
    """
    width, height = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).unbind(-1)
    return width * height


def _shared(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Area of what two boxes share, and of what they cover together."""
    corners = torch.cat([torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])], dim=-1)
    shared = areas(corners)
    return shared, areas(a) + areas(b) - shared


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union, broadcast: (..., 4), (..., 4) -> (...); of all pairs with `a[:, None]`.

    Example:
        >>> round(iou(torch.tensor([0.0, 0.0, 2.0, 2.0]), torch.tensor([1.0, 0.0, 3.0, 2.0])).item(), 4)
        0.3333
    """
    shared, together = _shared(a, b)
    return shared / together


def giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalised IoU: IoU - (hull - union) / hull, from -1 to 1, with a gradient where boxes do not meet.

    Source: Rezatofighi et al. 2019, algorithm 1.

    Example:
        >>> giou(torch.tensor([0.0, 0.0, 1.0, 1.0]), torch.tensor([3.0, 0.0, 4.0, 1.0]))
        tensor(-0.5000)
    """
    shared, together = _shared(a, b)
    hull = areas(torch.cat([torch.minimum(a[..., :2], b[..., :2]), torch.maximum(a[..., 2:], b[..., 2:])], dim=-1))
    return shared / together - (hull - together) / hull


def focal_loss(logits: Tensor, is_there: Tensor, *, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """-alpha_t (1 - p_t)^gamma log p_t for each logit: cross-entropy in which easy ones count little.

    Source: Lin et al. 2017, equation 5.

    Args:
        logits: of p.
        is_there: 1 where the object is there, 0 where it is not; same shape.
        alpha: weight of what is there; 1 - alpha of what is not.
        gamma: 0 is plain cross-entropy.

    Example:
        >>> focal_loss(torch.zeros(1), torch.ones(1)).item() == 0.25 * 0.25 * torch.tensor(2.0).log().item()
        True
    """
    nats = F.binary_cross_entropy_with_logits(logits, is_there, reduction="none")
    p = torch.sigmoid(logits)
    missing = p * (1 - is_there) + (1 - p) * is_there
    return nats * (alpha * is_there + (1 - alpha) * (1 - is_there)) * missing**gamma


def keep_best(boxes: Tensor, scores: Tensor, labels: Tensor, *, most_overlap: float) -> Tensor:
    """Non-maximum suppression within each class: the places of the boxes that stay, best first, int64.

    Greedy: a box goes if it overlaps a better one that stays. All are decided at once, again and again until nothing
    changes, which gives what deciding one by one gives.

    Source: Zheng et al. 2021 (Cluster-NMS), section 4.

    Args:
        boxes: (M, 4).
        scores: (M,), higher is better; of equal ones the earlier.
        labels: (M,), classes.
        most_overlap: intersection over union up to which both stay.

    Example:
        >>> boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0], [0.0, 1.0, 4.0, 5.0], [9.0, 9.0, 12.0, 12.0]])
        >>> keep_best(boxes, torch.tensor([0.8, 0.9, 0.1]), torch.zeros(3), most_overlap=0.5).tolist()
        [1, 2]
    """
    order = scores.argsort(descending=True, stable=True)
    boxes, labels = boxes[order], labels[order]
    overlaps = (iou(boxes[:, None], boxes) > most_overlap) & (labels[:, None] == labels)
    by_better = overlaps.triu(diagonal=1)  # row: the better one, column: the worse
    stays = torch.ones_like(order, dtype=torch.bool)
    while True:
        now = ~(by_better & stays[:, None]).any(0)
        if torch.equal(now, stays):
            return order[stays]
        stays = now
