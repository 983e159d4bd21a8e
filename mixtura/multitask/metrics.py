"""How good predictions are over the rows that have a label."""

import math

from torch import Tensor


def auc(score_N: Tensor, label_N: Tensor) -> float:
    """Area under the ROC curve: how often a positive row scores above a negative one, ties counting half.

    Rows whose label is NaN are left out. NaN where only one class is there.

    Args:
        score_N: (N,), higher is more likely positive.
        label_N: (N,), 1 or 0, or NaN.

    Example:
        >>> import torch
        >>> auc(torch.tensor([0.1, 0.4, 0.4, 0.8]), torch.tensor([0.0, 0.0, 1.0, 1.0]))
        0.875
    """
    is_known = ~label_N.isnan()
    score, positive = score_N[is_known].double(), label_N[is_known] > 0.5
    ones, zeros = int(positive.sum()), int((~positive).sum())
    if not (ones and zeros):
        return math.nan
    _, place, counts = score.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    rank = (last - (counts.double() - 1) / 2)[place]  # mean rank among equals, from 1
    return float((rank[positive].sum() - ones * (ones + 1) / 2) / (ones * zeros))
