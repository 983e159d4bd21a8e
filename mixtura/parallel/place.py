"""Which rank has which expert, and how stacked parameters are cut accordingly."""

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Shard, distribute_tensor

from mixtura.errors import UserError


def owned(num_experts: int, *, rank: int, size: int) -> tuple[int, int]:
    """The experts of a rank, from the first to before the last, as DTensor's `Shard(0)` cuts: ceil(E / size) each.

    Example:
        >>> [owned(5, rank=rank, size=3) for rank in range(3)]
        [(0, 2), (2, 4), (4, 5)]
    """
    each = -(-num_experts // size)
    return min(rank * each, num_experts), min((rank + 1) * each, num_experts)


def shard_stacked(experts: nn.Module, mesh: DeviceMesh, *, num_experts: int) -> None:
    """Turn every parameter (E, ...) of stacked experts into a DTensor cut along E over a mesh of one dimension.

    Parameters that are DTensors already stay as they are.

    Raises:
        UserError: a parameter whose first dimension is not E.
    """
    for name, parameter in experts.named_parameters():
        if parameter.ndim == 0 or parameter.shape[0] != num_experts:
            raise UserError(
                f"expected ModuleExperts, or experts whose parameters all have E={num_experts} as first dimension, "
                f"got {name} of shape {tuple(parameter.shape)}"
            )
    for module in experts.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if not isinstance(parameter, DTensor):
                replace_parameter(module, name, mesh=mesh, placements=[Shard(0)])


@torch.no_grad()
def replace_parameter(module: nn.Module, name: str, *, mesh: DeviceMesh, placements: list[Placement]) -> None:
    """Put a DTensor in a parameter's place; the values are those of the mesh's first rank."""
    old = module.get_parameter(name)
    spread = distribute_tensor(old.detach(), mesh, placements)
    module.register_parameter(name, nn.Parameter(spread, requires_grad=old.requires_grad))
