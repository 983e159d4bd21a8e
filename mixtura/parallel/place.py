"""Which rank has which expert, how stacked parameters are cut accordingly, and copies of busy experts."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Shard, distribute_tensor

from mixtura.errors import UserError
from mixtura.parallel.traffic import part_tensor
from mixtura.ranks import ProcessGroup


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


@dataclass(frozen=True)
class Slots:
    """Places of experts, one after another over the ranks, and the expert that each holds: it alone, or a copy of it.

    Copies share an expert's rows out evenly. To everything outside they are one expert: its gradient is that of all
    rows, the same on every copy, so that copies that began equal stay equal.

    Attributes:
        expert_S: of each place the expert.

    Example:
        >>> slots = Slots(torch.tensor([0, 1, 0, 2]))
        >>> slots.num_experts, slots.share(torch.tensor([5, 7, 1])).tolist()
        (3, [2, 7, 3, 1])
    """

    expert_S: Tensor
    _moved: dict[torch.device, "Slots"] = field(default_factory=dict, repr=False, compare=False)

    @property
    def num_experts(self) -> int:
        """E."""
        return int(self.expert_S.max()) + 1

    @cached_property
    def copies_S(self) -> Tensor:
        """How many copies there are of each place's expert: int64 (S,)."""
        return self.expert_S.bincount()[self.expert_S]

    @cached_property
    def by_expert_S(self) -> Tensor:
        """The places in the order of their experts, and of each expert's copies: int64 (S,)."""
        return self.expert_S.sort(stable=True).indices

    @cached_property
    def copy_S(self) -> Tensor:
        """Which of its expert's copies each place holds: int64 (S,)."""
        counts_E = self.expert_S.bincount()
        first_E = counts_E.cumsum(0) - counts_E
        places = torch.arange(len(self.expert_S), device=self.expert_S.device)
        return torch.empty_like(places).scatter_(0, self.by_expert_S, places) - first_E[self.expert_S]

    @cached_property
    def first_E(self) -> Tensor:
        """The first place of each expert: int64 (E,)."""
        return self.by_expert_S[self.copy_S[self.by_expert_S] == 0]

    def on(self, device: torch.device) -> "Slots":
        """The same on another device."""
        if self.expert_S.device == device:
            return self
        if device not in self._moved:
            self._moved[device] = Slots(self.expert_S.to(device))
        return self._moved[device]

    def share(self, counts_E: Tensor) -> Tensor:
        """Each place's rows: int64 (E,) -> (S,)."""
        here = self.on(counts_E.device)
        return part_tensor(counts_E[here.expert_S], here.copy_S, here.copies_S)

    @torch.no_grad()
    def expand(self, experts: nn.Module) -> None:
        """Give stacked experts, in place, one entry for each place."""
        for parameter in experts.parameters():
            parameter.data = parameter.data[self.expert_S.to(parameter.device)]
        experts.num_experts = len(self.expert_S)  # type: ignore[assignment]  # an attribute of stacked experts

    def copies_of(self, local: Tensor, *, first: int) -> Tensor:
        """How many copies there are of each entry of one rank's part of a stacked tensor, (e, 1, ...) like it."""
        copies_e = self.copies_S[first : first + local.shape[0]].to(local)
        return copies_e.view(-1, *[1] * (local.ndim - 1))

    def weigh_gradient(self, local: Tensor, *, first: int) -> None:
        """Multiply a copy's gradient by the number of copies: their mean is then the sum, also of several passes."""
        if local.requires_grad:
            local.register_hook(lambda gradient: gradient * self.copies_of(gradient, first=first))

    def tie(self, parameters: Sequence[nn.Parameter], *, first: int, group: ProcessGroup) -> None:
        """Give copies the mean of their gradients whenever these have come."""
        if (self.copies_S > 1).any():
            for parameter in parameters:
                if parameter.requires_grad:
                    parameter.register_post_accumulate_grad_hook(partial(self._average, first=first, group=group))

    def _average(self, parameter: Tensor, *, first: int, group: ProcessGroup) -> None:
        assert parameter.grad is not None
        grad = parameter.grad.to_local() if isinstance(parameter.grad, DTensor) else parameter.grad
        # Of all experts those that have copies, numbered; every rank joins the sum, with zeros for those it lacks.
        copied = (self.expert_S.bincount() > 1).nonzero().flatten().tolist()
        mine = self.expert_S[first : first + grad.shape[0]].tolist()
        total = grad.new_zeros(len(copied), *grad.shape[1:])
        pairs = [(place, copied.index(expert)) for place, expert in enumerate(mine) if expert in copied]
        for place, number in pairs:
            total[number] += grad[place]
        dist.all_reduce(total, group=group)
        for place, number in pairs:
            grad[place] = total[number]
        grad /= self.copies_of(grad, first=first)
