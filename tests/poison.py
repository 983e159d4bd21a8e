"""Uninitialised memory made visible: NaN where a tensor was allocated and not written."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

EMPTY = (
    (torch, "empty"),
    (torch, "empty_like"),
    (torch, "empty_strided"),
    (torch.Tensor, "new_empty"),
    (torch.Tensor, "new_empty_strided"),
)


def fill(tensor: torch.Tensor) -> torch.Tensor:
    """Fill in place: NaN in floating and complex tensors, the largest value in integers, True in booleans.

    The largest integer is an index out of every range, so a kernel that uses it as one fails too.
    """
    with torch.no_grad():
        if tensor.is_floating_point() or tensor.is_complex():
            return tensor.fill_(float("nan"))
        return tensor.fill_(True if tensor.dtype is torch.bool else torch.iinfo(tensor.dtype).max)


def poison_memory(patch: pytest.MonkeyPatch) -> None:
    """Make every function of torch that allocates without writing return poisoned tensors, until `patch` is undone."""
    with torch.device("cpu"):  # torch lists what allocates on first use; it must not list the poisoned ones
        torch.ones(1)
    for holder, name in EMPTY:
        patch.setattr(holder, name, _poisoned(getattr(holder, name)))


def _poisoned(allocate: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def poisoned(*args: Any, **kwargs: Any) -> torch.Tensor:
        return fill(allocate(*args, **kwargs))

    return poisoned
