"""Losses that keep a mixture balanced and stable: pure functions of `Routing`, and two ways to use them.

By default a layer *attaches* its losses: their gradient enters on the way back, and forward stays `y = layer(x)`.
Two traps follow, since the training loop never sees an attached loss:

* a GradScaler multiplies the task loss and not an attached one: with fp16 give its scale to `attach`, or collect;
* gradient accumulation adds the attached losses of every micro-batch: n micro-batches give n times the gradient.

`collect_losses` avoids both: inside the block nothing is attached, the losses are handed out to be added explicitly.

Example:
    >>> sorted(LOSSES)
    ['importance', 'load', 'load_balance', 'z']
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mixtura.errors import UserError
from mixtura.hooks import is_recomputing
from mixtura.routing import Routing


def _mean_over_tokens(values: Tensor, mask_T: Tensor | None) -> Tensor:
    if mask_T is None:
        return values.mean(0)
    real = mask_T.view(-1, *(1,) * (values.ndim - 1))
    return values.masked_fill(~real, 0).sum(0) / mask_T.sum().clamp(min=1)


def _cv_squared(values_E: Tensor) -> Tensor:
    if values_E.shape[0] == 1:
        return values_E.sum() * 0
    return values_E.var(correction=0) / (values_E.mean().square() + 1e-10)


def load_balance(routing: Routing) -> Tensor:
    """E / (K T) * sum_e c_e * mean_t p_te, with c_e the assignments of expert e; at least 1, and 1 when balanced.

    Null experts count as experts here.

    Source: Fedus et al. 2021 (Switch), equation 4, with f_e counted over all K choices. Hugging Face's version has the
    minimum K: its coefficient c is c * K here.

    Example:
        >>> p = torch.full((2, 2), 0.5)
        >>> routing = Routing.from_choices(torch.tensor([[0], [1]]), torch.ones(2, 1), logits_TE=p, probs_TE=p)
        >>> load_balance(routing).item()
        1.0
    """
    counts_E = routing.route_counts()
    share_E = counts_E / counts_E.sum().clamp(min=1)
    return counts_E.shape[0] * (share_E @ _mean_over_tokens(routing.probs_TE, routing.mask_T))


def z_loss(routing: Routing) -> Tensor:
    """mean_t (logsumexp_e l_te)^2: keeps the router's logits small.

    Source: Zoph et al. 2022 (ST-MoE), equation 5.

    Example:
        >>> routing = Routing.from_choices(
        ...     torch.tensor([[0]]), torch.ones(1, 1), logits_TE=torch.tensor([[2.0]]), probs_TE=torch.ones(1, 1)
        ... )
        >>> z_loss(routing).item()
        4.0
    """
    return _mean_over_tokens(routing.logits_TE.logsumexp(-1).square(), routing.mask_T)


def importance(routing: Routing) -> Tensor:
    """Squared coefficient of variation of each expert's summed weights: CV^2 = var / (mean^2 + 1e-10), var over E.

    Source: Shazeer et al. 2017, equations 6 and 7.

    Example:
        >>> p = torch.eye(2)
        >>> routing = Routing.from_choices(torch.tensor([[0], [0]]), torch.ones(2, 1), logits_TE=p, probs_TE=p)
        >>> round(importance(routing).item(), 6)
        1.0
    """
    routes = routing.probs_TE.shape[1]
    sums = routing.weight_N.new_zeros(routes + 1).index_add(0, routing.routes_N(), routing.weight_N)
    return _cv_squared(sums[:routes])


def load(routing: Routing) -> Tensor:
    """Squared coefficient of variation of each expert's expected number of tokens under fresh noise.

    A router without noise, or with K = E, has no smooth estimate: its plain counts are used, without a gradient.

    Source: Shazeer et al. 2017, appendix A, equation 11.

    Example:
        >>> p = torch.eye(2)
        >>> routing = Routing.from_choices(torch.tensor([[0], [1]]), torch.ones(2, 1), logits_TE=p, probs_TE=p)
        >>> load(routing).item()
        0.0
    """
    if routing.load_TE is None:
        return _cv_squared(routing.route_counts().to(routing.probs_TE.dtype))
    load_TE = routing.load_TE
    if routing.mask_T is not None:
        load_TE = load_TE.masked_fill(~routing.mask_T.unsqueeze(-1), 0)
    return _cv_squared(load_TE.sum(0))


LOSSES: dict[str, Callable[[Routing], Tensor]] = {
    "load_balance": load_balance,
    "z": z_loss,
    "importance": importance,
    "load": load,
}


def check_losses(names: Iterable[str]) -> None:
    """Refuse a loss that does not exist.

    Raises:
        UserError: names those that do.

    Example:
        >>> check_losses(["z"])
    """
    unknown = sorted(set(names) - set(LOSSES))
    if unknown:
        raise UserError(f"expected losses among {sorted(LOSSES)}, got {', '.join(map(repr, unknown))}")


class _Attach(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, loss: Tensor, scale: float) -> Tensor:
        # Kept on ctx, not by save_for_backward: activation recomputation counts saved tensors, and a loss that was
        # collected in the forward pass is attached in the recomputation.
        ctx.loss_grad = torch.full_like(loss, scale)
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        return grad, ctx.loss_grad, None


def attach(y: Tensor, loss: Tensor, *, scale: float = 1.0) -> Tensor:
    """Return `y` unchanged; on the way back `loss` gets the gradient `scale`, as if it were added to the task loss.

    Example:
        >>> w = torch.tensor(3.0, requires_grad=True)
        >>> attach(torch.zeros(1, requires_grad=True), w * w).sum().backward()
        >>> w.grad.item()
        6.0
    """
    result: Tensor = _Attach.apply(y, loss, scale)  # type: ignore[no-untyped-call]  # torch leaves it untyped
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
    names = {module: name for name, module in model.named_modules()}
    token = _collectors.set((*_collectors.get(), (collected, names)))
    try:
        yield collected
    finally:
        _collectors.reset(token)


def apply_losses(layer: nn.Module, y_TD: Tensor, routing: Routing, *, coefficients: Mapping[str, float]) -> Tensor:
    """Attach the layer's losses to its output, or hand them to the `collect_losses` block around; returns the output.

    Example:
        >>> p = torch.full((1, 1), 1.0, requires_grad=True)
        >>> routing = Routing.from_choices(torch.tensor([[0]]), p, logits_TE=p, probs_TE=p)
        >>> apply_losses(nn.Identity(), p, routing, coefficients={"z": 0.5}) is p
        False
    """
    if not coefficients or routing.num_tokens == 0:
        return y_TD
    values = {name: LOSSES[name](routing) for name in coefficients}
    # A recomputed forward has handed out its losses already (or, if reentrant, never could): it attaches.
    for collected, names in () if is_recomputing() else reversed(_collectors.get()):
        if layer in names:
            for name, value in values.items():
                collected.weighted.append((names[layer], name, coefficients[name] * value))
                collected.raw.append((names[layer], name, value.detach()))
            return y_TD
    return attach(y_TD, torch.stack([coefficients[name] * value for name, value in values.items()]).sum())
