"""Sums over the ranks of a distributed run: the one thing that losses and routers ask of torch.distributed."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch import distributed as dist

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
else:
    ProcessGroup = Any  # a build of torch may lack it

__all__ = ["ProcessGroup", "sum_over_ranks"]


@torch.no_grad()
def sum_over_ranks(values: Tensor, *, group: ProcessGroup | None = None) -> Tensor:
    """The sum of every rank's `values`, without a graph; without a process group, `values` themselves.

    A collective: every rank of the group must call it equally often and with the same shape.

    Args:
        values: a tensor of the same shape on every rank; it is left as it is.
        group: the ranks to sum over; None: all of them.

    Example:
        >>> sum_over_ranks(torch.tensor([3, 4]))
        tensor([3, 4])
    """
    if not (dist.is_available() and dist.is_initialized()):
        return values.detach()
    total = values.detach().clone()
    dist.all_reduce(total, group=group)
    return total
