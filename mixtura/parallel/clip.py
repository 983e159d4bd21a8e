"""The norm of gradients that live on different meshes, and clipping by it."""

from collections import defaultdict

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm

from mixtura.parallel.expert import ExpertParallel
from mixtura.ranks import ProcessGroup


@torch.no_grad()
def clip_grad_norm(model: nn.Module, max_norm: float) -> Tensor:
    """Scale all gradients so that their norm is at most `max_norm`; returns the norm before: that of one process.

    `torch.nn.utils.clip_grad_norm_` for parameters on several meshes, each counted once wherever it lives.

    Args:
        model: after `mixtura.parallelize`, or any other.
        max_norm: largest 2-norm; infinity: only measure.

    Example:
        >>> layer = nn.Linear(2, 1, bias=False)
        >>> layer.weight.grad = torch.tensor([[3.0, 4.0]])
        >>> clip_grad_norm(layer, 1.0).item(), layer.weight.grad.norm().item() < 1
        (5.0, True)
    """
    norm = total_norm(model)
    scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    for parameter in model.parameters():
        if parameter.grad is not None:
            grad = _local(parameter.grad)
            grad.mul_(scale.to(grad.device))
    return norm


@torch.no_grad()
def total_norm(model: nn.Module) -> Tensor:
    """The 2-norm of all gradients together, on every rank the same: a scalar.

    Example:
        >>> total_norm(nn.Linear(2, 1)).item()
        0.0
    """
    grads: dict[tuple[ProcessGroup, ...], list[Tensor]] = defaultdict(list)
    # Module experts are different parameters on each rank, and no DTensor says so. A rank without any takes part.
    apart: dict[nn.Parameter, ProcessGroup] = {}
    copied: dict[nn.Parameter, ExpertParallel] = {}
    for module in model.modules():
        if isinstance(module, ExpertParallel) and module.slots is not None:
            copied |= dict.fromkeys(module.parameters(), module)
        if isinstance(module, ExpertParallel) and module.apart:
            apart |= dict.fromkeys(module.parameters(), module.mesh.get_group())
            grads[module.mesh.get_group(),] = []
    for parameter in model.parameters():
        if parameter.grad is not None:
            elsewhere = (apart[parameter],) if parameter in apart else ()
            grads[_cut_over(parameter.grad) + elsewhere].append(_once(parameter.grad, copied.get(parameter)))
    total = torch.zeros((), device=next((own[0].device for own in grads.values() if own), None))
    for groups, own in grads.items():
        square = get_total_norm(own).to(total).square()
        for group in groups:
            dist.all_reduce(square, group=group)
        total += square
    return total.sqrt()


def _local(grad: Tensor) -> Tensor:
    here: Tensor = grad.to_local() if isinstance(grad, DTensor) else grad
    return here


def _once(grad: Tensor, experts: ExpertParallel | None) -> Tensor:
    """This rank's part of a gradient; each of n copies of an expert counts for an n-th of its square."""
    here = _local(grad)
    if experts is None or experts.slots is None:
        return here
    return here / experts.slots.copies_of(here, first=experts.first).sqrt()


def _cut_over(grad: Tensor) -> tuple[ProcessGroup, ...]:
    """The groups of ranks over which a gradient is cut; over all others it is the same."""
    if not isinstance(grad, DTensor):
        return ()
    mesh = grad.device_mesh
    cut = [dim for dim, placement in enumerate(grad.placements) if not placement.is_replicate() and mesh.size(dim) > 1]
    return tuple(mesh.get_group(dim) for dim in cut)
