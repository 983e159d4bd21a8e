"""Each expert's hidden width cut over the ranks of a mesh: every rank computes a part of all its experts' units."""

from dataclasses import replace
from typing import Self

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard

from mixtura.errors import UserError
from mixtura.experts import GroupedMLP
from mixtura.kernels import ACTIVATIONS
from mixtura.parallel.place import replace_parameter
from mixtura.routing import Rows


class TensorParallel(nn.Module):
    """A `GroupedMLP` whose hidden width is cut over R ranks, with its signature: `Rows -> y_ND`.

    All ranks of the mesh must have the same rows. Each computes F / R hidden units of every expert; the outputs are
    added up, and on the way back the gradients of the rows (Shoeybi et al. 2019, Megatron-LM, section 3).

    Args:
        experts: built alike on every rank.
        mesh: its last dimension is that of the R ranks; over one before it, `ep`, the experts themselves are spread.

    Shapes:
        up_proj: (E, F, D), cut along its second dimension. Of gated experts (E, 2F, D): the units are reordered so that
            each rank has the gate's rows of its units and then the others; see `unit_order`.
        down_proj: (E, D, F), cut along its last dimension. up_bias: like up_proj. down_bias: (E, D), on every rank.

    Raises:
        UserError: a hidden width that R does not divide.

    Example:
        >>> from mixtura.parallel.mesh import make_mesh, one_process
        >>> with one_process():
        ...     experts = TensorParallel(GroupedMLP(num_experts=2, dim=4, hidden=8), make_mesh()["ep", "tp"])
        ...     experts.up_proj.shape
        torch.Size([2, 16, 4])
    """

    def __init__(self, experts: GroupedMLP, mesh: DeviceMesh) -> None:
        super().__init__()
        size = mesh.size(mesh.ndim - 1)
        if experts.hidden % size:
            raise UserError(f"expected a hidden width that tp={size} divides, got {experts.hidden}")
        self.num_experts, self.dim = experts.num_experts, experts.dim
        self.mesh = mesh if mesh.ndim == 1 else mesh[(mesh.mesh_dim_names or ())[-1]]
        self.order_F = unit_order(experts.hidden, parts=size, gated=ACTIVATIONS[experts.activation].gated)
        with torch.no_grad():
            for parameter in (experts.up_proj, experts.up_bias):
                if parameter is not None:
                    parameter.copy_(parameter[:, self.order_F.to(parameter.device)])
        along: dict[str, Placement] = {"up_proj": Shard(1), "up_bias": Shard(1), "down_proj": Shard(2)}
        before: list[Placement] = [Shard(0)] * (mesh.ndim - 1)
        for name, _ in list(experts.named_parameters()):
            replace_parameter(experts, name, mesh=mesh, placements=[*before, along.get(name, Replicate())])
        experts.hidden //= size
        # The names stay those of the experts, as in `ExpertParallel`.
        self._parameters, self._local = experts._parameters, (experts,)

    def forward(self, rows: Rows) -> Tensor:
        """Run this rank's part of each expert and add the parts: Rows -> (N, D), weighted."""
        (experts,) = self._local
        mine = replace(rows, x_TD=self._enter(rows.x_TD), weight_N=self._enter(rows.weight_N))
        bias = experts.down_bias
        if bias is None:
            y_ND = experts(mine)
        else:
            # Each rank adds an equal part of the bias, and its gradient is that of the whole, the same on every rank.
            share = bias - bias.detach() * (1 - 1 / self.mesh.size())
            y_ND = torch.func.functional_call(experts, {"down_bias": share}, (mine,))
        added = DTensor.from_local(y_ND, self.mesh, [Partial()], run_check=False).redistribute(placements=[Replicate()])
        result: Tensor = added.to_local()
        return result

    def train(self, mode: bool = True) -> Self:  # noqa: FBT001, FBT002  # torch's own
        """Switch the mode of what computes here, too, which is no child."""
        self._local[0].train(mode)
        return super().train(mode)

    def _enter(self, x: Tensor) -> Tensor:
        """The same values; on the way back the ranks' gradients are added."""
        same = DTensor.from_local(x, self.mesh, [Replicate()], run_check=False)
        result: Tensor = same.to_local(grad_placements=[Partial()])
        return result

    def extra_repr(self) -> str:
        """What print(model) shows."""
        return f"num_experts={self.num_experts}, dim={self.dim}, ranks={self.mesh.size()}"


def unit_order(hidden: int, *, parts: int, gated: bool) -> Tensor:
    """The order of up_proj's rows in which equal parts hold whole units: int64 (F,), gated (2F,).

    Example:
        >>> unit_order(4, parts=2, gated=True).tolist()
        [0, 1, 4, 5, 2, 3, 6, 7]
    """
    return torch.arange((1 + gated) * hidden).view(1 + gated, parts, hidden // parts).transpose(0, 1).reshape(-1)
