"""Experts spread over the ranks of a mesh: rows travel to their experts and back."""

import zlib
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from mixtura.errors import UserError
from mixtura.experts import ModuleExperts
from mixtura.hooks import outside_graph
from mixtura.kernels.grouping import group, slots_of
from mixtura.kernels.rows import RowIndex, gather_rows
from mixtura.parallel.collective import Exchange, Payload, Plan, check_payload, guarded
from mixtura.parallel.place import owned, shard_stacked
from mixtura.ranks import ProcessGroup
from mixtura.routing import Rows

Chunks = int | Literal["auto"]
# Rows per chunk below which a second message costs more latency than it hides: an estimate, not measured.
ROWS_PER_CHUNK = 2048


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Everybody's counts, known on the device and, after the one wait of a layer, on the host.

    Attributes:
        sent_Re: int64 (R, e), rows of this rank for each expert of each rank; e is the largest number of experts that
            a rank has, and a rank with fewer has zeros.
        received_Re: int64 (R, e), rows that come from each rank for each of this rank's experts.
        sent: the same on the host.
        received: the same on the host.
        chunks: parts into which all ranks cut the batch.
    """

    sent_Re: Tensor
    received_Re: Tensor
    sent: list[list[int]]
    received: list[list[int]]
    chunks: int


def part(count: int, number: int, parts: int) -> int:
    """The size of one of the nearly equal parts that a count is cut into.

    Example:
        >>> [part(5, number, 2) for number in range(2)]
        [2, 3]
    """
    return count * (number + 1) // parts - count * number // parts


def exchange_counts(
    counts_E: Tensor, *, size: int, group: ProcessGroup, layer: str, state: Hashable, chunks: int
) -> Traffic:
    """Tell every rank how many rows it will get: one small all-to-all and the layer's one wait for the device.

    With the counts each rank sends what it is about to do (`state`, as a number), so that ranks which do different
    things find out here, and not in a message of the wrong size.

    Args:
        counts_E: (E,), rows of each expert on this rank.
        size: ranks in the group.
        group: the ranks.
        layer: a name for messages.
        state: must be the same on all ranks.
        chunks: into how many parts this rank would cut the batch; the smallest wish counts.

    Raises:
        UserError: the ranks are in different layers or states.
    """
    e = -(-counts_E.shape[0] // size)
    wire = counts_E.new_zeros(size, e + 2)
    flat = counts_E.new_zeros(size * e)
    flat[: counts_E.shape[0]] = counts_E
    wire[:, :e] = flat.view(size, e)
    wire[:, e] = zlib.crc32(repr((layer, state)).encode())
    wire[:, e + 1] = chunks
    came = torch.empty_like(wire)
    guarded(
        lambda: dist.all_to_all_single(came, wire, group=group), group=group, doing=f"layer {layer}: exchange of counts"
    )
    mine, theirs = torch.stack([wire, came]).tolist()
    ranks = dist.get_process_group_ranks(group)
    if others := [ranks[place] for place, row in enumerate(theirs) if row[e] != mine[0][e]]:
        raise UserError(
            f"expected every rank in layer {layer} with {state}, but of rank {dist.get_rank()}'s group the ranks "
            f"{others} are in another layer or have another capacity, mode or dtype; run the same model on every rank"
        )
    return Traffic(
        sent_Re=wire[:, :e],
        received_Re=came[:, :e],
        sent=[row[:e] for row in mine],
        received=[row[:e] for row in theirs],
        chunks=min(row[e + 1] for row in theirs),
    )


class ExpertParallel(nn.Module):
    """Experts spread over the ranks of a mesh, with the signature of the experts: `Rows -> y_ND`.

    Each rank keeps a part of the experts. Rows go to the ranks of their experts with their weights, are computed there
    by the experts' own code, and come back weighted: to the layer around nothing changes. Tokens per rank may differ
    and be none. Rank r has the experts from r * ceil(E / R) on.

    Stacked experts (`GroupedMLP`: every parameter's first dimension is E) become DTensors, `ModuleExperts` keep the
    modules of this rank. The parameters' names stay those of `experts`, whose place in the model this module takes. A
    gradient is the sum over all ranks' losses; `mx.parallelize` divides it.

    Args:
        experts: built alike on every rank; the first rank's weights count where they are stacked.
        mesh: one dimension of R <= E ranks.
        chunks: parts in which rows travel while others are computed; "auto": 2 where there are enough rows.
        payload: None: rows travel as they are; "bf16" or "fp8" (e4m3, one scale per row).
        dim_out: width of the experts' output where it is not the input's.
        layer: a name for messages.
        state: what else must be the same on all ranks at each forward, such as the layer's capacity.

    Raises:
        UserError: more ranks than experts, experts that can be spread in neither way, an unknown payload; in `forward`,
            ranks that do different things.
        RankError: in `forward`, a collective failed.

    Example:
        >>> from mixtura.experts import GroupedMLP
        >>> from mixtura.parallel.mesh import one_process, make_mesh
        >>> with one_process():
        ...     experts = ExpertParallel(GroupedMLP(num_experts=4, dim=8, hidden=16), make_mesh(ep=1)["ep"])
        ...     [name for name, _ in experts.named_parameters()]
        ['up_proj', 'down_proj']
    """

    runs_beside = True  # `forward` takes `meanwhile`

    def __init__(
        self,
        experts: nn.Module,
        mesh: DeviceMesh,
        *,
        chunks: Chunks = 1,
        payload: Payload | None = None,
        dim_out: int | None = None,
        layer: str = "experts",
        state: Callable[[], Hashable] | None = None,
    ) -> None:
        super().__init__()
        num_experts: int = getattr(experts, "num_experts", 0)
        if mesh.ndim != 1:
            raise UserError(f"expected a mesh of one dimension, as mesh['ep'], got {mesh.ndim}")
        if not 1 <= mesh.size() <= num_experts:
            raise UserError(
                f"expected at most as many ranks as experts, got {mesh.size()} ranks for {num_experts} experts; "
                "replicate groups of ranks over dp instead, as mx.parallelize does"
            )
        if chunks != "auto" and chunks < 1:
            raise UserError(f'expected chunks of at least 1, or "auto", got {chunks}')
        check_payload(payload)
        self.num_experts, self.row_shape = num_experts, getattr(experts, "row_shape", None)
        if isinstance(dim := getattr(experts, "dim", None), int):
            self.dim = dim
        self.mesh, self.chunks, self.payload = mesh, chunks, payload
        self.dim_out, self.layer, self.state = dim_out, layer, state
        self.first, self.last = owned(num_experts, rank=mesh.get_local_rank(), size=mesh.size())
        self.apart = isinstance(experts, ModuleExperts)
        self._take(experts)

    def _take(self, experts: nn.Module) -> None:
        """Share the experts' own parameters under their names; the experts stay what computes."""
        if isinstance(experts, ModuleExperts):
            mine = list(experts)[self.first : self.last]
            self._modules = {str(self.first + place): module for place, module in enumerate(mine)}
            experts = ModuleExperts(mine, row_shape=experts.row_shape) if mine else experts
        else:
            shard_stacked(experts, self.mesh, num_experts=self.num_experts)
            self._parameters, self._modules, self._buffers = experts._parameters, experts._modules, experts._buffers
        # In a tuple, since a module would become a child and lend its name to every parameter.
        self._local = (experts,)

    def forward(self, rows: Rows, *, meanwhile: Callable[[], Any] | None = None) -> Any:
        """Run every expert where it lives: Rows -> (N, D), weighted.

        Args:
            rows: of this rank's tokens.
            meanwhile: called while the rows travel; its result is returned behind the rows', as a pair.
        """
        return outside_graph(ExpertParallel._run, self, rows, meanwhile)

    def _run(self, rows: Rows, meanwhile: Callable[[], Any] | None) -> Any:
        traffic = exchange_counts(
            rows.counts_E,
            size=self.mesh.size(),
            group=self.mesh.get_group(),
            layer=self.layer,
            state=self._state(rows),
            chunks=self._chunks(rows),
        )
        plans = [self._plan(traffic, number) for number in range(traffic.chunks)]
        index, order_N, back_N = _chunked(rows.index, traffic)
        kept = index.token_N.shape[0]
        weight_N = rows.weight_N[:kept] if order_N is None else rows.weight_N.index_select(0, order_N)
        sizes = [sum(plan.sent) for plan in plans]
        parts = zip(gather_rows(rows.x_TD, index).split(sizes), weight_N.split(sizes), strict=True)
        outgoing = list(zip(plans, parts, strict=True))
        under_way = Exchange(outgoing[0][0], *outgoing[0][1])
        beside = None if meanwhile is None else meanwhile()
        returning = []
        for number, plan in enumerate(plans):
            here, after = under_way, outgoing[number + 1 : number + 2]
            for following, tensors in after:
                under_way = Exchange(following, *tensors)
            returning.append(Exchange(plan.back(), self._compute(*here.wait(), traffic=traffic, number=number)))
        parts_ND = [y for exchange in returning for y in exchange.wait()]
        y_ND = parts_ND[0] if len(parts_ND) == 1 else torch.cat(parts_ND)
        y_ND = y_ND if back_N is None else y_ND.index_select(0, back_N)
        tail = rows.weight_N.shape[0] - kept
        y_ND = nn.functional.pad(y_ND, (0, 0, 0, tail)) if tail else y_ND
        return y_ND if meanwhile is None else (y_ND, beside)

    def _state(self, rows: Rows) -> Hashable:
        """What all ranks must agree on, so that each starts the same collectives now and on the way back."""
        x = rows.x_TD
        grads = torch.is_grad_enabled(), x.requires_grad, rows.weight_N.requires_grad
        given = None if self.state is None else self.state()
        return tuple(x.shape[1:]), str(x.dtype), self.training, grads, self.payload, given

    def _chunks(self, rows: Rows) -> int:
        if self.chunks != "auto":
            return self.chunks
        return 2 if rows.weight_N.shape[0] >= 2 * ROWS_PER_CHUNK else 1

    def _plan(self, traffic: Traffic, number: int) -> Plan:
        def sizes(counts: list[list[int]]) -> tuple[int, ...]:
            return tuple(sum(part(count, number, traffic.chunks) for count in row) for row in counts)

        return Plan(
            sent=sizes(traffic.sent),
            received=sizes(traffic.received),
            group=self.mesh.get_group(),
            layer=self.layer,
            payload=self.payload,
        )

    def _compute(self, x_MD: Tensor, weight_M: Tensor, *, traffic: Traffic, number: int) -> Tensor:
        """This rank's experts on the rows that came, ordered by sender: (M, D) -> (M, D_out), weighted."""
        e = self.last - self.first
        counts_Re = part_tensor(traffic.received_Re, number, traffic.chunks)[:, :e]
        rows = received_rows(x_MD, weight_M, counts_Re)
        y_MD = rows.combine(self._local_experts(rows)) if e else x_MD * weight_M.unsqueeze(1).to(x_MD.dtype)
        width = self.dim_out or x_MD.shape[1]
        if x_MD.shape[0] == 0 and y_MD.shape[1] != width:
            y_MD = y_MD[:, :1].expand(0, width)
        if y_MD.shape[1] != width:
            raise UserError(
                f"expected experts that give rows of width {width}, got {y_MD.shape[1]} in layer {self.layer}; "
                "tell ExpertParallel their dim_out"
            )
        return y_MD

    def _local_experts(self, rows: Rows) -> Tensor:
        (experts,) = self._local
        local = {name: p.to_local() for name, p in experts.named_parameters() if isinstance(p, DTensor)}
        y_ND: Tensor = torch.func.functional_call(experts, local, (rows,)) if local else experts(rows)
        return y_ND

    def train(self, mode: bool = True) -> Self:  # noqa: FBT001, FBT002  # torch's own
        """Switch the mode of what computes here, too, which is no child."""
        self.inner.train(mode)
        return super().train(mode)

    @property
    def inner(self) -> nn.Module:
        """What computes on this rank."""
        return self._local[0]

    def extra_repr(self) -> str:
        """What print(model) shows."""
        return (
            f"num_experts={self.num_experts}, here={self.first}..{self.last - 1}, ranks={self.mesh.size()}, "
            f"chunks={self.chunks}, payload={self.payload}"
        )


def part_tensor(counts: Tensor, number: int, parts: int) -> Tensor:
    """`part` of every count of a tensor.

    Example:
        >>> part_tensor(torch.tensor([5, 4]), 1, 2).tolist()
        [3, 2]
    """
    return counts * (number + 1) // parts - counts * number // parts


def received_rows(x_MD: Tensor, weight_M: Tensor, counts_Re: Tensor) -> Rows:
    """Rows that came ordered by sender, and by expert within, as `Rows` of the experts here; `combine` restores that.

    No row is moved: the experts read them through an index.

    Args:
        x_MD: the rows, (M, D).
        weight_M: (M,), their weights.
        counts_Re: int64 (R, e), rows from each sender for each expert.

    Example:
        >>> rows = received_rows(torch.tensor([[1.0], [2.0], [3.0]]), torch.ones(3), torch.tensor([[1, 1], [1, 0]]))
        >>> rows.gather().tolist(), rows.counts_E.tolist()
        ([[1.0], [3.0], [2.0]], [2, 1])
    """
    (R, e), M = counts_Re.shape, x_MD.shape[0]
    experts = torch.arange(e, device=x_MD.device).repeat(R)
    route_M = experts.repeat_interleave(counts_Re.reshape(-1), output_size=M)
    order_M, counts_e = group(route_M, num_experts=e)
    slot_M1 = slots_of(order_M, counts_e, choices=1, all_kept=True)
    index = RowIndex(order_M, counts_e, slot_M1, num_tokens=M, dropless=True)
    return Rows(x_TD=x_MD, weight_N=weight_M.index_select(0, order_M), index=index)


def _chunked(index: RowIndex, traffic: Traffic) -> tuple[RowIndex, Tensor | None, Tensor | None]:
    """The index of the kept rows alone, chunk after chunk; the old place of each row, and the new one of each.

    With one chunk the order stays, and there is nothing to put back.
    """
    kept = sum(map(sum, traffic.sent))
    token_N = index.token_N[:kept]
    if traffic.chunks == 1:
        return index._replace(token_N=token_N), None, None
    bounds_n = torch.stack([part_tensor(traffic.sent_Re, n, traffic.chunks).reshape(-1) for n in range(traffic.chunks)])
    # Sizes of the pieces in the old order: of each expert in turn, its part of each chunk.
    numbers = torch.arange(traffic.chunks, device=token_N.device).repeat(bounds_n.shape[1])
    chunk_N = numbers.repeat_interleave(bounds_n.T.reshape(-1), output_size=kept)
    order_N, _ = group(chunk_N, num_experts=traffic.chunks)
    back_N = order_N.scatter(0, order_N, torch.arange(kept, device=order_N.device))
    slot_TK = index.slot_TK
    if slot_TK is not None and kept:
        slot_TK = back_N[slot_TK.clamp(min=0)].where(slot_TK >= 0, -1)
    return index._replace(token_N=token_N[order_N], slot_TK=slot_TK), order_N, back_N
