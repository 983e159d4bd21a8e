"""Long series made short enough to draw: which points to keep, running medians, means over columns."""

import math
from bisect import bisect_left, insort
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor


def even(length: int, limit: int) -> list[int]:
    """At most `limit` positions of a series, evenly spread, with the first and the last one.

    Example:
        >>> even(10, 4), even(3, 4)
        ([0, 3, 6, 9], [0, 1, 2])
    """
    if length <= limit:
        return list(range(length))
    return sorted({round(i * (length - 1) / max(1, limit - 1)) for i in range(limit)})


def extremes(values: Sequence[float], limit: int) -> list[int]:
    """At most `limit` positions that keep the look of a noisy series: lowest and highest of each stretch.

    A spike of a single step stays visible, which evenly spread points would lose. A stretch with a non-finite value
    gives that position in place of its lowest, so that the line shows a gap there.

    Example:
        >>> extremes([1.0, 1.1, 9.0, 1.0, 0.9, 1.0], 4)
        [0, 2, 3, 4]
    """
    if len(values) <= limit:
        return list(range(len(values)))
    stretches = max(1, limit // 2)
    kept: set[int] = set()
    for i in range(stretches):
        stretch = range(i * len(values) // stretches, (i + 1) * len(values) // stretches)
        known = [j for j in stretch if math.isfinite(values[j])]
        broken = [j for j in stretch if not math.isfinite(values[j])]
        kept.update(broken[:1] or [min(known, key=values.__getitem__)])
        if known:
            kept.add(max(known, key=values.__getitem__))
    return sorted(kept)


def running_median(values: Sequence[float], window: int) -> list[float]:
    """Median of the finite values in a centred window of `window` steps (made odd), shorter at both ends.

    NaN stays where the value itself is not finite, so that a gap is not drawn over.

    Example:
        >>> running_median([1.0, 9.0, 2.0, 3.0], 3)
        [5.0, 2.0, 3.0, 2.5]
    """
    half = window // 2
    sorted_window: list[float] = []
    medians = []
    for i in range(-half, len(values)):
        entering, leaving = i + half, i - half - 1
        if entering < len(values) and math.isfinite(values[entering]):
            insort(sorted_window, values[entering])
        if leaving >= 0 and math.isfinite(values[leaving]):
            del sorted_window[bisect_left(sorted_window, values[leaving])]
        if i >= 0:
            medians.append(_middle(sorted_window) if math.isfinite(values[i]) else math.nan)
    return medians


def _middle(ordered: Sequence[float]) -> float:
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


def columns(steps: Sequence[int], values: Tensor, limit: int) -> tuple[list[int], Tensor]:
    """A table over time with at most `limit` columns: means over neighbouring ones, the middle step as their label.

    NaN entries are left out of the means; a column is NaN where all of its entries are.

    Shapes:
        steps: P numbers; values: (P, E); result: at most `limit` steps and (E, columns).

    Example:
        >>> steps, values = columns((1, 2, 3, 4), torch.tensor([[0.0], [2.0], [4.0], [6.0]]), 2)
        >>> steps, values.tolist()
        ([2, 4], [[1.0, 5.0]])
    """
    count = min(limit, len(steps))
    edges = [i * len(steps) // count for i in range(count + 1)]
    stretches = [range(low, high) for low, high in pairwise(edges)]
    middle = [steps[stretch[len(stretch) // 2]] for stretch in stretches]
    return middle, torch.stack([values[stretch.start : stretch.stop].nanmean(0) for stretch in stretches], dim=1)
