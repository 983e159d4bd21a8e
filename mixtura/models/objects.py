"""From objects to what each cell of a detector learns, and from what each cell says back to objects.

Shapes here: B images, H and W their height and width, L cells of all maps of an image, M objects, N of them or of
cells.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  # torch's own customary name

from mixtura.models.boxes import focal_loss, giou, keep_best

STRIDES = (4, 8)
_REACH = 4  # cells of a map that the longest side of its objects has at most; the last map has all larger ones
_NEAR = 1.5  # cells around an object's centre that learn it
_CANDIDATES = 4  # for each object that may be found


@dataclass(frozen=True)
class Grid:
    """Where the cells of an image lie.

    Attributes:
        centre: (L, 2), x and y of each cell's centre in pixels.
        stride: (L,), its side in pixels.
        level: int64 (L,), number of its map.

    Example:
        >>> grid = Grid.of(16, 8)
        >>> grid.centre[0].tolist(), grid.stride.tolist(), grid.level.tolist()
        ([2.0, 2.0], [4, 4, 4, 4, 4, 4, 4, 4, 8, 8], [0, 0, 0, 0, 0, 0, 0, 0, 1, 1])
    """

    centre: Tensor
    stride: Tensor
    level: Tensor

    @classmethod
    def of(cls, height: int, width: int, *, device: torch.device | None = None) -> "Grid":
        """Of images of a size in pixels, which the largest stride divides."""
        centres, strides, levels = [], [], []
        for level, stride in enumerate(STRIDES):
            y, x = (torch.arange(size // stride, device=device) for size in (height, width))
            centre = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).reshape(-1, 2)
            centres.append((centre + 0.5) * stride)
            strides.append(torch.full((len(centre),), stride, device=device))
            levels.append(torch.full((len(centre),), level, device=device))
        return cls(torch.cat(centres), torch.cat(strides), torch.cat(levels))


@dataclass(frozen=True, kw_only=True)
class Objects:
    """The objects of a batch of images.

    Attributes:
        boxes: (M, 4), left, top, right, bottom in pixels.
        labels: int64 (M,), classes.
        image: int64 (M,), place of each one's image in the batch, ascending.

    Example:
        >>> one = torch.zeros(1, dtype=torch.long)
        >>> Objects(boxes=torch.tensor([[0.0, 0.0, 4.0, 4.0]]), labels=one, image=one).labels.tolist()
        [0]
    """

    boxes: Tensor
    labels: Tensor
    image: Tensor


def assign(objects: Objects, grid: Grid, *, images: int) -> Tensor:
    """Which object each cell learns: int64 (B, L), its place in `objects`; -1: none.

    An object belongs to one map by its longest side (FCOS has it by the farthest side). There it is learned by the
    cells whose centre lies in its box and within 1.5 cells of the box's centre (FCOS's centre sampling), and by the
    cell that holds that centre, so that no object is too small. Where two want one cell, it is the smaller one's.

    Args:
        objects: with boxes inside their images.
        grid: of the cells.
        images: B.

    Example:
        >>> one = torch.zeros(1, dtype=torch.long)
        >>> objects = Objects(boxes=torch.tensor([[0.0, 0.0, 4.0, 4.0]]), labels=one, image=one)
        >>> assign(objects, Grid.of(8, 8), images=1).tolist()
        [[0, -1, -1, -1, -1]]
    """
    boxes, (M, L) = objects.boxes, (len(objects.boxes), len(grid.level))
    size_M2 = boxes[:, 2:] - boxes[:, :2]
    steps = boxes.new_tensor([_REACH * stride for stride in STRIDES[:-1]])
    level_M = torch.bucketize(size_M2.amax(1), steps)
    away_ML2 = (grid.centre - (boxes[:, None, :2] + boxes[:, None, 2:]) / 2).abs()
    inside_ML = (away_ML2 < size_M2[:, None] / 2).all(-1)
    away_ML = away_ML2.amax(-1) / grid.stride
    learns_ML = (grid.level == level_M[:, None]) & ((away_ML <= 0.5) | (inside_ML & (away_ML <= _NEAR)))
    by_size = (size_M2[:, 0] * size_M2[:, 1]).argsort(stable=True)
    rank_M = torch.empty_like(by_size).scatter_(0, by_size, torch.arange(M, device=boxes.device))
    object_N, cell_N = learns_ML.nonzero(as_tuple=True)
    slot_N = objects.image[object_N] * L + cell_N
    smallest = rank_M.new_full((images * L,), M).scatter_reduce(0, slot_N, rank_M[object_N], "amin")
    return torch.cat([by_size, by_size.new_full((1,), -1)])[smallest].view(images, L)


@dataclass(frozen=True)
class Output:
    """What a detector says of every cell.

    Attributes:
        logits: (B, L, classes).
        boxes: (B, L, 4), left, top, right, bottom in pixels.
        grid: of the cells.
    """

    logits: Tensor
    boxes: Tensor
    grid: Grid


@dataclass(frozen=True, kw_only=True)
class Losses:
    """Of a batch, summed.

    Attributes:
        by_class: (classes,), focal loss of each class over all cells.
        boxes: (classes,), 1 - GIoU over the cells that learn an object of each class.
        cells: (classes,), how many cells those are.

    Example:
        >>> Losses(by_class=torch.ones(2), boxes=torch.zeros(2), cells=torch.tensor([4.0, 0.0])).cells.sum()
        tensor(4.)
    """

    by_class: Tensor
    boxes: Tensor
    cells: Tensor


def detection_losses(output: Output, objects: Objects) -> Losses:
    """Focal loss of the classes in all cells, and 1 - GIoU of the boxes in those that learn an object.

    Source: Lin et al. 2017; Rezatofighi et al. 2019; both summed, to be divided by the number of learning cells as FCOS
    does (Tian et al. 2019, equation 2).
    """
    B, _, number = output.logits.shape
    owner_BL = assign(objects, output.grid, images=B)
    learns_BL = owner_BL >= 0
    owner_N = owner_BL[learns_BL]
    is_there = torch.zeros_like(output.logits)
    label_N = objects.labels[owner_N]
    is_there[learns_BL] = F.one_hot(label_N, number).to(is_there.dtype)
    lost_N = 1 - giou(output.boxes[learns_BL], objects.boxes[owner_N])
    return Losses(
        by_class=focal_loss(output.logits, is_there).sum((0, 1)),
        boxes=lost_N.new_zeros(number).index_add(0, label_N, lost_N),
        cells=label_N.bincount(minlength=number).to(lost_N.dtype),
    )


@dataclass(frozen=True, kw_only=True)
class Detections:
    """What was found in one image, best first.

    Attributes:
        boxes: (N, 4), left, top, right, bottom in pixels.
        scores: (N,), from 0 to 1.
        labels: int64 (N,), classes.
        cell: int64 (N,), which cell said so.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    cell: Tensor


@torch.no_grad()
def detect(
    output: Output, *, size: tuple[int, int], threshold: float = 0.05, most_overlap: float = 0.6, most: int = 100
) -> list[Detections]:
    """The objects in each image of a batch.

    Args:
        output: of the detector.
        size: height and width of the images; boxes are cut off there.
        threshold: least score.
        most_overlap: of two boxes of one class; see `keep_best`.
        most: objects in an image.
    """
    width_and_height = output.boxes.new_tensor([size[1], size[0]] * 2)
    found = []
    for logits_LK, boxes_L4 in zip(output.logits.float(), output.boxes.float(), strict=True):
        number = logits_LK.shape[1]
        scores, places = torch.sigmoid(logits_LK).flatten().topk(min(_CANDIDATES * most, logits_LK.numel()))
        places = places[scores >= threshold]
        cell_N, label_N = places // number, places % number
        boxes_N4 = torch.minimum(boxes_L4[cell_N].clamp(min=0), width_and_height)
        scores = scores[: len(places)]
        kept = keep_best(boxes_N4, scores, label_N, most_overlap=most_overlap)[:most]
        found.append(Detections(boxes=boxes_N4[kept], scores=scores[kept], labels=label_N[kept], cell=cell_N[kept]))
    return found
