"""Domains that nobody named: documents grouped by the pairs of tokens they hold; import it late, for it needs numpy."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mixtura.routers.balanced import balanced_assignment
from mixtura.train.data.arrays import TokenArray

_BUCKETS = 1024
_ROUNDS = 10


def split_at(tokens: TokenArray, end_id: int) -> list[TokenArray]:
    """The documents of a row of tokens, each with the end id behind it.

    Example:
        >>> [part.tolist() for part in split_at(np.array([5, 0, 6, 7, 0], dtype="uint16"), 0)]
        [[5, 0], [6, 7, 0]]
    """
    ends = np.flatnonzero(tokens == end_id) + 1
    return [part for part in np.split(tokens, ends) if len(part)]


def features(documents: Sequence[TokenArray]) -> Tensor:
    """How often each pair of neighbouring tokens occurs, hashed into 1024 buckets, on a log scale: (documents, 1024).

    Example:
        >>> features([np.array([5, 6, 5, 6], dtype="uint16")]).count_nonzero().item()
        2
    """
    counts = np.zeros((len(documents), _BUCKETS), dtype=np.float32)
    for row, document in zip(counts, documents, strict=True):
        ids = document.astype(np.int64)
        row += np.bincount((ids[:-1] * 1_000_003 + ids[1:] * 7919) % _BUCKETS, minlength=_BUCKETS)
    return torch.from_numpy(np.log1p(counts))


def centres_of(feature_NB: Tensor, number: int, *, seed: int) -> tuple[Tensor, Tensor]:
    """Balanced k-means by cosine: each cluster gets as many documents as the others, up to one.

    Source: Gururangan et al. 2023 (Scaling expert language models with unsupervised domain discovery), section 2.1.

    Returns:
        What to weigh the features by, less the more documents hold each: (B,); and the centres: (number, B).

    Example:
        >>> weight, centre = centres_of(torch.eye(4)[[0, 0, 1, 1]], 2, seed=0)
        >>> nearest(torch.eye(4)[[0, 0, 1, 1]], weight, centre).unique().numel()
        2
    """
    held_B = (feature_NB > 0).sum(0)
    weight_B = 1 + ((1 + feature_NB.shape[0]) / (1 + held_B)).log()
    unit_NB = torch.nn.functional.normalize(feature_NB * weight_B, dim=1)
    first = torch.randint(unit_NB.shape[0], (1,), generator=torch.Generator().manual_seed(seed))
    chosen = [int(first)]
    nearest_N = unit_NB @ unit_NB[chosen[0]]
    while len(chosen) < number:  # the next one is the least like all before
        nearest_N[chosen] = torch.inf
        chosen.append(int(nearest_N.argmin()))
        nearest_N = torch.maximum(nearest_N, unit_NB @ unit_NB[chosen[-1]])
    centre_CB = unit_NB[chosen]
    for _ in range(_ROUNDS):
        cluster_N = balanced_assignment(unit_NB @ centre_CB.T, epsilon=0.05, rounds=256)
        sums_CB = torch.zeros_like(centre_CB).index_add_(0, cluster_N, unit_NB)
        centre_CB = torch.nn.functional.normalize(sums_CB, dim=1)
    return weight_B, centre_CB


def nearest(feature_NB: Tensor, weight_B: Tensor, centre_CB: Tensor) -> Tensor:
    """The cluster of each document: int64 (documents,).

    Example:
        >>> nearest(torch.eye(2), torch.ones(2), torch.eye(2)).tolist()
        [0, 1]
    """
    return (feature_NB * weight_B @ centre_CB.T).argmax(1)
