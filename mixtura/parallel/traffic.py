"""Which rows go where: everybody's counts, and the way of each part of a batch, straight or through the own node.

On one network all ranks are equal, and each sends to each. Where ranks share nodes, a row for another node is first
handed to the rank of the own node that stands where its receiver stands in his (Nie et al. 2022, HetuMoE, section 3.2).
What crosses between nodes is the same to the byte, in N - 1 messages of each rank where there were (N - 1) * L.
"""

import zlib
from collections.abc import Hashable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from mixtura.errors import UserError
from mixtura.kernels.grouping import group
from mixtura.parallel.collective import Exchange, Payload, Plan, guarded
from mixtura.ranks import ProcessGroup


@dataclass(frozen=True, kw_only=True)
class Road:
    """The ranks between which rows travel.

    Attributes:
        mesh: R ranks, of one dimension.
        nodes: the same ranks in the same order as (N nodes, L ranks on each); None: all are equal.
        layer: a name for messages.
        payload: see `Plan`.

    Raises:
        UserError: a mesh of another number of dimensions, or nodes with other ranks.
    """

    mesh: DeviceMesh
    nodes: DeviceMesh | None = None
    layer: str = "experts"
    payload: Payload | None = None

    def __post_init__(self) -> None:
        if self.mesh.ndim != 1:
            raise UserError(f"expected a mesh of one dimension, as mesh['ep'], got {self.mesh.ndim}")
        nodes = self.nodes
        if nodes is not None and (nodes.ndim != 2 or not torch.equal(nodes.mesh.flatten(), self.mesh.mesh)):
            raise UserError(
                f"expected nodes as a mesh of two dimensions with the ranks {self.mesh.mesh.tolist()} in this order, "
                f"got {nodes.mesh.tolist()}"
            )

    @property
    def size(self) -> int:
        """R."""
        return self.mesh.size()

    @property
    def shape(self) -> tuple[int, int]:
        """(N, L): nodes, and ranks on each; without nodes each rank is one."""
        return (self.size, 1) if self.nodes is None else (self.nodes.size(0), self.nodes.size(1))

    def plan(self, sent: list[int], received: list[int], *, group: ProcessGroup) -> Plan:
        """One leg of the way."""
        return Plan(sent=tuple(sent), received=tuple(received), group=group, layer=self.layer, payload=self.payload)


@dataclass(frozen=True, kw_only=True)
class Way:
    """How a part of the batch travels: one leg, or one inside the node and then one between nodes.

    Attributes:
        legs: one plan or two.
        order_M: int64, with two legs: the rows of the first in the order in which the second sends them.
    """

    legs: tuple[Plan, ...]
    order_M: Tensor | None = None

    def back(self) -> "Way":
        """The way back."""
        order_M = self.order_M
        if order_M is not None:
            order_M = order_M.scatter(0, order_M, torch.arange(order_M.shape[0], device=order_M.device))
        return Way(legs=tuple(plan.back() for plan in reversed(self.legs)), order_M=order_M)


class Trip:
    """Tensors of rows on their way; `wait` gives what came. As `Exchange`, over all legs."""

    def __init__(self, way: Way, *tensors: Tensor) -> None:
        self._way = way
        self._under_way = Exchange(way.legs[0], *tensors)

    def wait(self) -> tuple[Tensor, ...]:
        """The tensors that came, ordered by the sending rank; a second leg is travelled now."""
        came = self._under_way.wait()
        if self._way.order_M is not None:
            order_M = self._way.order_M
            came = Exchange(self._way.legs[1], *(x.index_select(0, order_M) for x in came)).wait()
        return came


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Everybody's counts, known on the device and, after the one wait of a layer, on the host.

    Attributes:
        sent_Re: int64 (R, e), rows of this rank for each expert of each rank; e is the largest number of experts that
            a rank has, and a rank with fewer has zeros.
        received_Re: int64 (R, e), rows that come from each rank for each of this rank's experts.
        sent: the same on the host.
        received: the same on the host.
        passing_LNe: int64 (L, N, e), rows that each rank of this node hands to this one for each node; None: no nodes.
        passing: the same on the host, by rank of this node and then by node.
        chunks: parts into which all ranks cut the batch.
        road: the ranks.
    """

    sent_Re: Tensor
    received_Re: Tensor
    sent: list[list[int]]
    received: list[list[int]]
    chunks: int
    road: Road
    passing_LNe: Tensor | None = None
    passing: list[list[int]] | None = None

    def way(self, number: int) -> Way:
        """How a part of the batch travels."""

        def sizes(counts: list[list[int]]) -> list[int]:
            return [sum(part(count, number, self.chunks) for count in row) for row in counts]

        road, sent, received = self.road, sizes(self.sent), sizes(self.received)
        if road.nodes is None or self.passing is None or self.passing_LNe is None:
            return Way(legs=(road.plan(sent, received, group=road.mesh.get_group()),))
        (N, L), passing = road.shape, sizes(self.passing)
        inside = road.plan(
            [sum(sent[rank::L]) for rank in range(L)],
            [sum(passing[rank * N : (rank + 1) * N]) for rank in range(L)],
            group=road.nodes.get_group(1),
        )
        between = road.plan(
            [sum(passing[node::N]) for node in range(N)],
            [sum(received[node * L : (node + 1) * L]) for node in range(N)],
            group=road.nodes.get_group(0),
        )
        # (rank of this node, node) -> (node, rank of this node)
        nodes = torch.arange(N, device=self.passing_LNe.device).repeat(L)
        sizes_LN = part_tensor(self.passing_LNe, number, self.chunks).sum(2).flatten()
        order_M, _ = group(nodes.repeat_interleave(sizes_LN, output_size=sum(passing)), num_experts=N)
        return Way(legs=(inside, between), order_M=order_M)


def part(count: int, number: int, parts: int) -> int:
    """The size of one of the nearly equal parts that a count is cut into.

    Example:
        >>> [part(5, number, 2) for number in range(2)]
        [2, 3]
    """
    return count * (number + 1) // parts - count * number // parts


def part_tensor(counts: Tensor, number: int | Tensor, parts: int | Tensor) -> Tensor:
    """`part` of every count of a tensor.

    Example:
        >>> part_tensor(torch.tensor([5, 4]), 1, 2).tolist()
        [3, 2]
    """
    return counts * (number + 1) // parts - counts * number // parts


def exchange_counts(counts_E: Tensor, *, road: Road, state: Hashable, chunks: int) -> Traffic:
    """Tell every rank how many rows it will get: one small all-to-all and the layer's one wait for the device.

    With the counts each rank sends what it is about to do (`state`, as a number), so that ranks which do different
    things find out here, and not in a message of the wrong size. With nodes the counts go the way of the rows.

    Args:
        counts_E: (E,), rows of each expert on this rank.
        road: the ranks.
        state: must be the same on all ranks.
        chunks: into how many parts this rank would cut the batch; the smallest wish counts.

    Raises:
        UserError: the ranks are in different layers or states.
    """
    size, layer = road.size, road.layer
    e = -(-counts_E.shape[0] // size)
    wire = counts_E.new_zeros(size, e + 2)
    flat = counts_E.new_zeros(size * e)
    flat[: counts_E.shape[0]] = counts_E
    wire[:, :e] = flat.view(size, e)
    wire[:, e] = zlib.crc32(repr((layer, state)).encode())
    wire[:, e + 1] = chunks
    passing_LNe: Tensor | None = None
    if road.nodes is None:
        came = _swap(wire, road.mesh.get_group(), layer)
    else:
        N, L = road.shape
        passing = _swap(wire.view(N, L, e + 2).transpose(0, 1).contiguous(), road.nodes.get_group(1), layer)
        came = _swap(passing.transpose(0, 1).contiguous(), road.nodes.get_group(0), layer).view(size, e + 2)
        passing_LNe = passing[:, :, :e]
    seen = [wire, came] if passing_LNe is None else [wire, came, passing.view(size, e + 2)]
    mine, theirs, *rest = torch.stack(seen).tolist()
    ranks = dist.get_process_group_ranks(road.mesh.get_group())
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
        road=road,
        passing_LNe=passing_LNe,
        passing=[row[:e] for row in rest[0]] if rest else None,
    )


def _swap(wire: Tensor, group: ProcessGroup, layer: str) -> Tensor:
    """An all-to-all of equal parts."""
    came = torch.empty_like(wire)
    guarded(
        lambda: dist.all_to_all_single(came, wire, group=group), group=group, doing=f"layer {layer}: exchange of counts"
    )
    return came
