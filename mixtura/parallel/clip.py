"""The norm of gradients that live on different meshes, and clipping by it."""

from collections import defaultdict

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm

from mixtura.parallel.expert import ExpertParallel


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
            grad = parameter.grad.to_local() if isinstance(parameter.grad, DTensor) else parameter.grad
            grad.mul_(scale.to(grad.device))
    return norm


@torch.no_grad()
def total_norm(model: nn.Module) -> Tensor:
    """The 2-norm of all gradients together, on every rank the same: a scalar.

    Example:
        >>> total_norm(nn.Linear(2, 1)).item()
        0.0
    """
    # Module experts are different parameters on each rank, and no DTensor says so.
    apart = {
        parameter: module.mesh
        for module in model.modules()
        if isinstance(module, ExpertParallel) and module.apart
        for parameter in module.parameters()
    }
    groups: dict[tuple[DeviceMesh | None, DeviceMesh | None], list[Tensor]] = defaultdict(list)
    for parameter in model.parameters():
        if parameter.grad is not None:
            on = parameter.grad.device_mesh if isinstance(parameter.grad, DTensor) else None
            groups[on, apart.get(parameter)].append(parameter.grad)
    device = next((grads[0].device for grads in groups.values()), torch.device("cpu"))
    total = torch.zeros((), device=device)
    elsewhere = {m.mesh: total.clone() for m in model.modules() if isinstance(m, ExpertParallel) and m.apart}
    for (_, mesh), grads in groups.items():
        norm = get_total_norm(grads)
        square = (norm.full_tensor() if isinstance(norm, DTensor) else norm).square()
        if mesh is None:
            total += square
        else:
            elsewhere[mesh] += square
    for mesh, square in elsewhere.items():  # a rank without experts has none of these gradients, but takes part
        dist.all_reduce(square, group=mesh.get_group())
        total += square
    return total.sqrt()
