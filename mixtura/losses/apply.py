"""How losses enter training: attached to a layer's output, or handed out by `collect_losses`."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mixtura.errors import UserError
from mixtura.hooks import is_recomputing, layer_names, outside_graph
from mixtura.kernels.rows import Function
from mixtura.losses.balance import LOSSES
from mixtura.losses.parameters import PARAMETER_LOSSES
from mixtura.routing import Routing


def check_losses(names: Iterable[str]) -> None:
    """Refuse a loss that does not exist.

    Raises:
        UserError: names those that do.

    Example:
        >>> check_losses(["z", "l2"])
    """
    known = {*LOSSES, *PARAMETER_LOSSES}
    unknown = sorted(set(names) - known)
    if unknown:
        raise UserError(f"expected losses among {sorted(known)}, got {', '.join(map(repr, unknown))}")


class _Attach(Function):
    @staticmethod
    def forward(*inputs: Any) -> Tensor:
        y: Tensor = inputs[0]
        return y.view_as(y)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, float], _: Tensor) -> None:
        # Nothing is saved: activation recomputation counts saved tensors, and a loss that was collected in the forward
        # pass is attached in the recomputation.
        _, loss, ctx.scale = inputs
        ctx.shape, ctx.dtype = loss.shape, loss.dtype

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        return grad, grad.new_full(ctx.shape, ctx.scale, dtype=ctx.dtype), None


def attach(y: Tensor, loss: Tensor, *, scale: float = 1.0) -> Tensor:
    """Return `y` unchanged; on the way back `loss` gets the gradient `scale`, as if it were added to the task loss.

    Example:
        >>> w = torch.tensor(3.0, requires_grad=True)
        >>> attach(torch.zeros(1, requires_grad=True), w * w).sum().backward()
        >>> w.grad.item()
        6.0
    """
    result: Tensor = _Attach.call(y, loss, scale)
    return result


@dataclass(frozen=True)
class CollectedLosses:
    """What `collect_losses` hands out: weighted losses to add to the task loss, and raw values to look at.

    Attributes:
        weighted: one entry per layer call and loss: (layer name, loss name, coefficient * value), with its graph.
        raw: the same without the coefficient and without the graph.

    Example:
        >>> CollectedLosses().total()
        tensor(0.)
    """

    weighted: list[tuple[str, str, Tensor]] = field(default_factory=list)
    raw: list[tuple[str, str, Tensor]] = field(default_factory=list)

    def total(self) -> Tensor:
        """The sum of all weighted losses: a scalar to add to the task loss."""
        if not self.weighted:
            return torch.zeros(())
        return torch.stack([value for _, _, value in self.weighted]).sum()

    def means(self) -> dict[str, Tensor]:
        """The raw value of each loss, mean over layers: what a log shows."""
        names = dict.fromkeys(name for _, name, _ in self.raw)
        return {n: torch.stack([value for _, name, value in self.raw if name == n]).mean() for n in names}


# Open `collect_losses` blocks, outermost first, each with the names of its model's modules.
_collectors: ContextVar[tuple[tuple[CollectedLosses, dict[nn.Module, str]], ...]]
_collectors = ContextVar("mixtura_losses", default=())
_open_collectors: list[CollectedLosses] = []  # in any context, for torch.compile, which can guard on a list


@contextmanager
def collect_losses(model: nn.Module) -> Iterator[CollectedLosses]:
    """Inside the block the MoE layers of `model` hand out their losses instead of attaching them.

    A layer that several nested blocks know hands its losses to the innermost. Under activation recomputation use
    `use_reentrant=False`: the reentrant kind builds no graph in the forward pass, so that its layers attach.

    Example:
        >>> import mixtura as mx
        >>> layer = mx.MoEConfig(dim=4, hidden=8, num_experts=2, k=2, losses={"load_balance": 0.01}).build()
        >>> with mx.collect_losses(layer) as losses:
        ...     task = layer(torch.randn(3, 4)).square().mean()
        >>> (task + losses.total()).backward()
        >>> list(losses.means())
        ['load_balance']
    """
    collected = CollectedLosses()
    token = _collectors.set((*_collectors.get(), (collected, layer_names(model))))
    _open_collectors.append(collected)
    try:
        yield collected
    finally:
        _open_collectors.pop()
        _collectors.reset(token)


def apply_losses(layer: nn.Module, y_TD: Tensor, routing: Routing, *, coefficients: Mapping[str, float]) -> Tensor:
    """Attach the layer's losses to its output, or hand them to the `collect_losses` block around; returns the output.

    Args:
        layer: losses of parameters read its `router` and `experts`.
        y_TD: the layer's output.
        routing: what the other losses are functions of; without tokens those are 0.
        coefficients: loss -> coefficient.

    Example:
        >>> p = torch.full((1, 1), 1.0, requires_grad=True)
        >>> routing = Routing.from_choices(torch.tensor([[0]]), p, logits_TE=p, probs_TE=p)
        >>> apply_losses(nn.Identity(), p, routing, coefficients={"z": 0.5}) is p
        False
    """
    if not coefficients:
        return y_TD
    with torch.autocast(y_TD.device.type, enabled=False):  # which would round the products in some of them
        values = {name: _value(name, layer, routing) for name in coefficients}
    return enter(layer, y_TD, values, coefficients=coefficients)


def enter(layer: nn.Module, y: Tensor, values: Mapping[str, Tensor], *, coefficients: Mapping[str, float]) -> Tensor:
    """Attach losses that are computed already to a module's output, or hand them out; see `apply_losses`.

    Example:
        >>> y = torch.zeros(2, requires_grad=True)
        >>> enter(nn.Identity(), y, {"size": y.sum()}, coefficients={"size": 0.5}).sum().backward()
        >>> y.grad.tolist()
        [1.5, 1.5]
    """
    weighted = {name: coefficients[name] * value for name, value in values.items()}
    if _open_collectors and outside_graph(_hand_out, layer, values, weighted):
        return y
    return attach(y, torch.stack(list(weighted.values())).sum())


def _hand_out(layer: nn.Module, values: Mapping[str, Tensor], weighted: Mapping[str, Tensor]) -> bool:
    """Whether a block around took the losses."""
    # A recomputed forward has handed out its losses already (or, if reentrant, never could): it attaches.
    for collected, names in () if is_recomputing() else reversed(_collectors.get()):
        if layer in names:
            collected.weighted.extend((names[layer], name, value) for name, value in weighted.items())
            collected.raw.extend((names[layer], name, value.detach()) for name, value in values.items())
            return True
    return False


def _value(name: str, layer: nn.Module, routing: Routing) -> Tensor:
    if name in LOSSES:
        return LOSSES[name](routing)
    value = PARAMETER_LOSSES[name](layer.get_submodule("router"), layer.get_submodule("experts"))
    return value.to(routing.probs_TE.device)  # that of a router without parameters is a plain zero
