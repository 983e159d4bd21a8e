"""Rows between the ranks of a group: a differentiable all-to-all whose wait is apart from its start.

An `Exchange` starts when it is made and ends when it is waited for; between the two the caller may compute. The way
back has the same two halves in the opposite order, so that what overlaps in the forward pass does so in the backward
pass. Every tensor of an exchange travels in one node of the graph: all ranks then call the same collectives in the
same order on the way back, whatever each of them did with what it got.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch import distributed as dist

from mixtura.errors import UserError
from mixtura.kernels.ops import first_derivative_only
from mixtura.ranks import ProcessGroup

Payload = Literal["bf16", "fp8"]


class RankError(RuntimeError):
    """A collective failed on this rank: the message names the rank, what it was doing, and torch's own reason.

    Example:
        >>> raise RankError("rank 1 of 2, layer blocks.0: exchange of rows: connection closed by peer")
        Traceback (most recent call last):
        ...
        mixtura.parallel.collective.RankError: rank 1 of 2, layer blocks.0: exchange of rows: connection closed by peer
    """


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How many rows go where, in the order of the group's ranks, and in what form.

    Attributes:
        sent: rows that go to each rank of the group.
        received: rows that come from each rank.
        group: the ranks.
        layer: a name for messages.
        payload: how tensors of rows travel: None, as they are; "bf16"; "fp8", e4m3 with a scale for each row. Vectors
            (one number per row) always travel as they are.

    Example:
        >>> plan = Plan(sent=(1, 2), received=(0, 3), group=None, layer="mlp")
        >>> plan.back().sent
        (0, 3)
    """

    sent: tuple[int, ...]
    received: tuple[int, ...]
    group: ProcessGroup | None
    layer: str
    payload: Payload | None = None

    def back(self) -> "Plan":
        """The way back."""
        return replace(self, sent=self.received, received=self.sent)


def check_payload(payload: str | None) -> None:
    """Refuse a payload that does not exist.

    Raises:
        UserError: names those that do.

    Example:
        >>> check_payload("bf16")
    """
    if payload is not None and payload not in get_args(Payload):
        raise UserError(f"expected a payload among None, {', '.join(get_args(Payload))}, got {payload!r}")


def _encode(x: Tensor, payload: Payload | None) -> Tensor:
    """What travels: the rows themselves, or bytes (N, width)."""
    if payload is None or x.ndim == 1:
        return x.contiguous()
    # Bytes can be seen only behind ordinary strides, which gradients that were expanded do not have.
    if payload == "bf16":
        return x.to(torch.bfloat16, copy=True, memory_format=torch.contiguous_format).view(torch.uint8)
    largest = torch.finfo(torch.float8_e4m3fn).max
    scale_N1 = x.abs().amax(1, keepdim=True).float().clamp(min=torch.finfo(torch.float32).tiny * largest) / largest
    scale_N1 = scale_N1.clone(memory_format=torch.contiguous_format)
    small = (x.float() / scale_N1).to(torch.float8_e4m3fn)
    return torch.cat([scale_N1.view(torch.uint8), small.view(torch.uint8)], dim=1)


def _decode(wire: Tensor, dtype: torch.dtype, payload: Payload | None) -> Tensor:
    if payload is None or wire.ndim == 1:
        return wire
    if payload == "bf16":
        return wire.view(torch.bfloat16).to(dtype)
    scale_N1 = wire[:, :4].flatten().view(torch.float32).unsqueeze(1)
    return (wire[:, 4:].contiguous().view(torch.float8_e4m3fn).float() * scale_N1).to(dtype)


class _Transfer:
    """Tensors under way in one direction."""

    def __init__(self, tensors: tuple[Tensor, ...], plan: Plan) -> None:
        self.plan, self.dtypes = plan, [x.dtype for x in tensors]
        # What is sent must live until it has arrived.
        self.sent = [_encode(x, plan.payload) for x in tensors]
        self.received = [wire.new_empty(sum(plan.received), *wire.shape[1:]) for wire in self.sent]
        self.works = [self._start(out, wire) for out, wire in zip(self.received, self.sent, strict=True)]

    def _start(self, out: Tensor, wire: Tensor) -> Any:
        plan = self.plan
        return guarded(
            lambda: dist.all_to_all_single(
                out, wire, list(plan.received), list(plan.sent), group=plan.group, async_op=True
            ),
            group=plan.group,
            doing=f"layer {plan.layer}: exchange of rows",
        )

    def wait(self) -> tuple[Tensor, ...]:
        for work in self.works:
            guarded(work.wait, group=self.plan.group, doing=f"layer {self.plan.layer}: exchange of rows")
        arrived = zip(self.received, self.dtypes, strict=True)
        return tuple(_decode(wire, dtype, self.plan.payload) for wire, dtype in arrived)


def guarded(call: Callable[[], Any], *, group: ProcessGroup | None, doing: str) -> Any:
    """Run a collective; what torch raises gets the rank's name and what it was doing.

    Raises:
        RankError: the collective failed: a rank died, left the group, or did something else until the time-out.

    Example:
        >>> guarded(lambda: 3, group=None, doing="counting")
        3
    """
    try:
        return call()
    except RuntimeError as error:
        rank, size = dist.get_rank(), dist.get_world_size()
        members = dist.get_process_group_ranks(group) if group is not None else list(range(size))
        reason = str(error).strip().partition("\n")[0]
        raise RankError(
            f"rank {rank} of {size}, {doing} with ranks {members} failed: {reason}; "
            "a rank of the group died, skipped this layer, or is slower than the group's time-out"
        ) from error


class Exchange:
    """Tensors of rows on their way to the ranks of a plan; `wait` gives what came.

    Gradients return to where the rows came from. If any of the tensors requires a gradient, all that come out do.

    Args:
        plan: who sends how much to whom; all ranks of its group must start the exchange with the same tensors.
        tensors: (N, ...) each, N = sum(plan.sent), ordered by the receiving rank.

    Raises:
        RankError: torch's collective failed; the message names this rank.

    Example:
        >>> from mixtura.parallel.mesh import one_process
        >>> with one_process():
        ...     plan = Plan(sent=(2,), received=(2,), group=None, layer="mlp")
        ...     (y,) = Exchange(plan, torch.ones(2, 3)).wait()
        >>> y.shape
        torch.Size([2, 3])
    """

    def __init__(self, plan: Plan, *tensors: Tensor) -> None:
        self.plan = plan
        self.wanted = [x.requires_grad for x in tensors]
        self.under_way: _Transfer | None = None
        # An empty tensor that ties the two halves together: what comes out is not there yet.
        self._anchor: Tensor | None = _Start.apply(self, *tensors)  # type: ignore[no-untyped-call]  # torch leaves it so

    def wait(self) -> tuple[Tensor, ...]:
        """The tensors that came, (sum(plan.received), ...), ordered by the sending rank."""
        anchor, self._anchor = self._anchor, None  # a reference to its own graph would keep both alive
        arrived: tuple[Tensor, ...] = _Wait.apply(self, anchor)  # type: ignore[no-untyped-call]  # torch leaves it so
        return arrived

    def begin(self, tensors: tuple[Tensor, ...], plan: Plan) -> None:
        """Start a transfer in one direction."""
        self.under_way = _Transfer(tensors, plan)

    def end(self) -> tuple[Tensor, ...]:
        """Wait for the transfer that was begun."""
        transfer, self.under_way = self.under_way, None
        assert transfer is not None
        return transfer.wait()


class _Start(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, exchange: Exchange, *tensors: Tensor) -> Tensor:
        ctx.exchange = exchange
        exchange.begin(tensors, exchange.plan)
        return torch.empty(0, device=tensors[0].device)

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor | None, ...]:
        came = iter(ctx.exchange.end())
        return None, *(next(came) if wanted else None for wanted in ctx.exchange.wanted)


class _Wait(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, exchange: Exchange, _: Tensor) -> tuple[Tensor, ...]:
        ctx.exchange = exchange
        return exchange.end()

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        exchange = ctx.exchange
        wanted = tuple(grad for grad, want in zip(grads, exchange.wanted, strict=True) if want)
        exchange.begin(wanted, exchange.plan.back())
        return None, grads[0].new_zeros(0, dtype=torch.float32)
