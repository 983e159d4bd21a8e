"""Experts spread over the ranks of a mesh: rows travel to their experts and back."""

from collections.abc import Callable, Hashable
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from mixtura.errors import UserError
from mixtura.experts import ModuleExperts
from mixtura.hooks import outside_graph
from mixtura.kernels.grouping import group, slots_of
from mixtura.kernels.rows import RowIndex, gather_rows
from mixtura.parallel.collective import Payload, check_payload
from mixtura.parallel.place import Slots, owned, shard_stacked
from mixtura.parallel.traffic import Road, Traffic, Trip, exchange_counts, part_tensor
from mixtura.routing import Rows

Chunks = int | Literal["auto"]
# Where two chunks began to pay when packets take 5 ms (two processes, D 128; docs/parallel.md); else they did not.
ROWS_PER_CHUNK = 4096


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
        nodes: the same ranks as (nodes, ranks on each): rows for other nodes first go to a rank of the own node that
            sends them on together with the others'. What crosses between nodes stays the same, in fewer messages.
        slots: which expert each place holds, where experts were placed by their load; `experts` are those of the places
            (`Slots.expand`). None: experts in their order.
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
        nodes: DeviceMesh | None = None,
        slots: Slots | None = None,
        chunks: Chunks = 1,
        payload: Payload | None = None,
        dim_out: int | None = None,
        layer: str = "experts",
        state: Callable[[], Hashable] | None = None,
    ) -> None:
        super().__init__()
        places: int = getattr(experts, "num_experts", 0)
        self.road = Road(mesh=mesh, nodes=nodes, layer=layer, payload=payload)
        if not 1 <= mesh.size() <= places:
            raise UserError(
                f"expected at most as many ranks as experts, got {mesh.size()} ranks for {places} experts; "
                "replicate groups of ranks over dp instead, as mx.parallelize does"
            )
        if chunks != "auto" and chunks < 1:
            raise UserError(f'expected chunks of at least 1, or "auto", got {chunks}')
        check_payload(payload)
        self.slots = slots
        self.num_experts = places if slots is None else slots.num_experts
        self.row_shape = getattr(experts, "row_shape", None)
        if isinstance(dim := getattr(experts, "dim", None), int):
            self.dim = dim
        self.mesh, self.chunks, self.payload = mesh, chunks, payload
        self.dim_out, self.layer, self.state = dim_out, layer, state
        self.first, self.last = owned(places, rank=mesh.get_local_rank(), size=mesh.size())
        self.apart = isinstance(experts, ModuleExperts)
        self._take(experts, places)

    def _take(self, experts: nn.Module, places: int) -> None:
        """Share the experts' own parameters under their names; the experts stay what computes."""
        if isinstance(experts, ModuleExperts):
            mine = list(experts)[self.first : self.last]
            self._modules = {str(self.first + place): module for place, module in enumerate(mine)}
            experts = ModuleExperts(mine, row_shape=experts.row_shape) if mine else experts
        else:
            shard_stacked(experts, self.mesh, num_experts=places)
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
        counts = rows.counts_E if self.slots is None else self.slots.share(rows.counts_E)
        traffic = exchange_counts(counts, road=self.road, state=self._state(rows), chunks=self._chunks(rows))
        ways = [traffic.way(number) for number in range(traffic.chunks)]
        index, order_N, back_N = _arranged(rows.index, traffic, self.slots)
        kept = index.token_N.shape[0]
        weight_N = rows.weight_N[:kept] if order_N is None else rows.weight_N.index_select(0, order_N)
        sizes = [sum(way.legs[0].sent) for way in ways]
        parts = zip(gather_rows(rows.x_TD, index).split(sizes), weight_N.split(sizes), strict=True)
        outgoing = list(zip(ways, parts, strict=True))
        under_way = Trip(outgoing[0][0], *outgoing[0][1])
        beside = None if meanwhile is None else meanwhile()
        returning = []
        for number, way in enumerate(ways):
            here, after = under_way, outgoing[number + 1 : number + 2]
            for following, tensors in after:
                under_way = Trip(following, *tensors)
            returning.append(Trip(way.back(), self._compute(*here.wait(), traffic=traffic, number=number)))
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
        if self.slots is not None:
            for tensor in local.values():
                self.slots.weigh_gradient(tensor, first=self.first)
        y_ND: Tensor = torch.func.functional_call(experts, local, (rows,)) if local else experts(rows)
        return y_ND

    def tie_copies(self) -> None:
        """Keep an expert's copies equal, by the mean of their gradients; after FSDP has put its own parameters here."""
        if self.slots is not None:
            self.slots.tie(list(self.parameters()), first=self.first, group=self.mesh.get_group())

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


def _arranged(index: RowIndex, traffic: Traffic, slots: Slots | None) -> tuple[RowIndex, Tensor | None, Tensor | None]:
    """The index of the kept rows alone in the order in which they leave; the old place of each, and the new one.

    They leave chunk after chunk; then by rank, with nodes by the rank's place in its node first; then by expert. In one
    chunk, without nodes and slots, the order stays, and there is nothing to put back.
    """
    kept = sum(map(sum, traffic.sent))
    token_N = index.token_N[:kept]
    if traffic.chunks == 1 and traffic.road.nodes is None and slots is None:
        return index._replace(token_N=token_N), None, None
    (R, e), (N, L), device = traffic.sent_Re.shape, traffic.road.shape, token_N.device
    bounds_nS = torch.stack(
        [part_tensor(traffic.sent_Re, n, traffic.chunks).reshape(-1) for n in range(traffic.chunks)]
    )
    # Where each expert stands among those of a chunk: (N, L, e) -> (L, N, e).
    keys_S = torch.arange(R * e, device=device).view(L, N, e).transpose(0, 1).reshape(-1)
    keys_nS = keys_S + R * e * torch.arange(traffic.chunks, device=device).unsqueeze(1)
    if slots is not None:  # rows come by expert, and of each expert by copy
        by_expert_S = slots.on(device).by_expert_S
        bounds_nS, keys_nS = bounds_nS[:, by_expert_S], keys_nS[:, by_expert_S]
    # Sizes of the pieces in the old order: of each expert in turn, its part of each chunk.
    key_N = keys_nS.T.reshape(-1).repeat_interleave(bounds_nS.T.reshape(-1), output_size=kept)
    order_N, _ = group(key_N, num_experts=R * e * traffic.chunks)
    back_N = order_N.scatter(0, order_N, torch.arange(kept, device=device))
    slot_TK = index.slot_TK
    if slot_TK is not None and kept:
        slot_TK = back_N[slot_TK.clamp(min=0)].where(slot_TK >= 0, -1)
    return index._replace(token_N=token_N[order_N], slot_TK=slot_TK), order_N, back_N
