"""Prune a mixture: which experts matter least, by several measures, and the mixture without them."""

from collections.abc import Iterable
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from mixtura.errors import UserError
from mixtura.layer import MoE
from mixtura.routing import Routing, Rows
from mixtura.surgery.batches import watch
from mixtura.surgery.layers import mixtures
from mixtura.surgery.select import select

Measure = Literal["reap", "frequency", "router_norm", "random"]


def saliency(model: nn.Module, by: Measure = "reap", *, data: Iterable[Any] | None = None) -> dict[str, Tensor]:
    """How much each expert of each mixture matters: by layer name, float (E,), larger is more.

    "reap": the mean over the tokens routed to it of weight * ||output||; an expert without tokens has 0. "frequency":
    the share of the assignments it got. "router_norm": the norm of its row of the router's matrix. "random": a draw.

    Source: Lasby et al. 2025 (REAP the experts), equation 9.

    Args:
        model: with mixtures of `GroupedMLP` experts.
        by: the measure.
        data: batches that the model is called with, for "reap" and "frequency": see `moefy`.

    Raises:
        UserError: an unknown measure, no data, a router without a matrix for "router_norm".

    Example:
        >>> import mixtura as mx
        >>> layer = mx.MoEConfig(dim=4, hidden=8, num_experts=2, k=1, router="hard").build()
        >>> round(saliency(layer, "frequency", data=[torch.randn(6, 4)])[""].sum().item(), 4)
        1.0
    """
    if by not in get_args(Measure):
        raise UserError(f"expected a measure among {', '.join(get_args(Measure))}, got {by!r}")
    layers = mixtures(model)
    if by == "random":
        return {name: torch.rand(layer.router.num_experts) for name, layer in layers.items()}
    if by == "router_norm":
        return {name: _row_norms(layer) for name, layer in layers.items()}
    if data is None:
        raise UserError(f'expected data= to measure "{by}", got None; give some inputs of the model')
    totals = {layer: torch.zeros(2, layer.router.num_experts, dtype=torch.float64) for layer in layers.values()}

    def listen(layer: MoE, routing: Routing, rows: Rows) -> None:
        del routing
        if layer in totals:
            norms_E = norm_sums(layer, rows) if by == "reap" else torch.zeros(layer.router.num_experts)
            totals[layer] += torch.stack([rows.counts_E, norms_E]).double().cpu()

    watch(model, data, listen)
    return {name: _measured(totals[layer], by) for name, layer in layers.items()}


def _measured(totals_2E: Tensor, by: Measure) -> Tensor:
    counts_E, norms_E = totals_2E
    measured_E: Tensor = norms_E / counts_E.clamp(min=1) if by == "reap" else counts_E / counts_E.sum().clamp(min=1)
    return measured_E.float()


def norm_sums(layer: MoE, rows: Rows) -> Tensor:
    """The sum of weight * ||output|| over each expert's rows: (E,).

    Example:
        >>> import mixtura as mx
        >>> layer = mx.MoEConfig(dim=4, hidden=8, num_experts=2).build()
        >>> watch(layer, [torch.randn(3, 4)], lambda layer, routing, rows: print(norm_sums(layer, rows).shape))
        torch.Size([2])
    """
    # Experts give rows that are weighted already.
    norms_N = layer.experts(rows).float().norm(dim=1)
    sums_E: Tensor = torch.stack([part.sum() for part in norms_N.split(rows.index.parts())[:-1]])
    return sums_E


def _row_norms(layer: MoE) -> Tensor:
    if layer.router.weight is None:
        raise UserError(f"expected a router with a matrix, got {type(layer.router).__name__}")
    norms_E: Tensor = layer.router.weight.detach().float().norm(dim=1)
    return norms_E[: layer.router.num_experts].cpu()


def prune(
    model: nn.Module,
    keep: float = 0.5,
    *,
    by: Measure = "reap",
    data: Iterable[Any] | None = None,
    k: int | None = None,
) -> dict[str, list[int]]:
    """Take the experts that matter least out of every mixture, the same number everywhere, in place.

    Routers share the weight out among those that stay.

    Args:
        model: with mixtures of `GroupedMLP` experts.
        keep: how many experts of each layer stay; below 1, which share of them.
        by: see `saliency`.
        data: see `saliency`.
        k: choices per token from now on; None: as before.

    Returns:
        The numbers of those that stayed, by layer name, in order.

    Raises:
        UserError: a `keep` that leaves less than k or more than there are; see `saliency` and `select`.

    Example:
        >>> import mixtura as mx
        >>> layer = mx.MoEConfig(dim=4, hidden=8, num_experts=8, k=2).build()
        >>> kept = prune(layer, 0.5, data=[torch.randn(64, 4)])
        >>> len(kept[""]), layer.experts.num_experts
        (4, 4)
    """
    layers = mixtures(model)
    numbers = {
        name: round(layer.router.num_experts * keep) if keep < 1 else int(keep) for name, layer in layers.items()
    }
    for name, number in numbers.items():
        E = layers[name].router.num_experts
        if keep <= 0 or (keep >= 1 and keep != number) or not 1 <= number <= E:
            raise UserError(f"expected to keep a number of the {E} experts of {name or 'the layer'}, got {keep}")
    score = saliency(model, by, data=data)
    kept = {}
    for name, layer in layers.items():
        best = score[name].sort(descending=True, stable=True).indices[: numbers[name]]
        kept[name] = sorted(best.tolist())
        select(layer, kept[name], k=k)
    return kept
