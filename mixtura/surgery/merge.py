"""Merge similar experts of a mixture: grouped by what they do, aligned unit by unit, averaged by their use."""

from collections.abc import Iterable
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from mixtura.errors import UserError
from mixtura.kernels.activations import ACTIVATIONS, StackedMLP
from mixtura.layer import MoE
from mixtura.routers.balanced import balanced_assignment
from mixtura.routing import Routing, Rows
from mixtura.surgery.batches import inputs_of, watch
from mixtura.surgery.edit import stack_cat
from mixtura.surgery.initial import take
from mixtura.surgery.layers import experts_of, grouped, mixtures, stack_of
from mixtura.surgery.select import select
from mixtura.surgery.sites import dense_forward
from mixtura.surgery.to_dense import average

Similarity = Literal["outputs", "router"]


@torch.no_grad()
def merge(
    model: nn.Module,
    num_experts: int,
    *,
    data: Iterable[Any],
    by: Similarity = "outputs",
    align: bool = True,
    k: int | None = None,
) -> dict[str, list[list[int]]]:
    """Make fewer experts of the many of every mixture, in place: each new one is the mean of a group of similar ones.

    Groups come from hierarchical clustering with average linkage; members are weighted by how many tokens they got, and
    so are their rows of the router. Before averaging, each member's hidden units are put in the order in which they
    match those of the group's busiest member best.

    Source: Li et al. 2024 (Merge, then compress) for alignment and frequencies; Chen et al. 2024 (HC-SMoE) for
    clustering by outputs.

    Args:
        model: with mixtures of `GroupedMLP` experts.
        num_experts: how many stay in each layer.
        data: batches that the model is called with, see `moefy`.
        by: "outputs": the cosine between what two experts make of the same tokens; "router": that of their logits.
        align: reorder hidden units.
        k: choices per token from now on; None: as before.

    Returns:
        The groups of old numbers, by layer name.

    Raises:
        UserError: a number below 1 or above what there is, an unknown similarity, no data; see also `select`.

    Example:
        >>> import mixtura as mx
        >>> layer = mx.MoEConfig(dim=4, hidden=8, num_experts=4, k=2).build()
        >>> groups = merge(layer, 2, data=[torch.randn(32, 4)])
        >>> sum(map(len, groups[""])), layer.experts.num_experts
        (4, 2)
    """
    if by not in get_args(Similarity):
        raise UserError(f"expected a similarity among {', '.join(get_args(Similarity))}, got {by!r}")
    layers, batches = mixtures(model), list(data)
    for name, layer in layers.items():
        if not 1 <= num_experts <= layer.router.num_experts:
            here = f"{layer.router.num_experts} of {name or 'the layer'}"
            raise UserError(f"expected num_experts from 1 to {here}, got {num_experts}")
    counts = _counts(model, layers, batches)
    inputs = inputs_of(model, list(layers), batches, max_tokens=1024)
    merged = {}
    for name, layer in layers.items():
        groups = group_similar(_similarity(layer, inputs[name], by), num_experts)
        _merge(layer, groups, counts[layer], align=align, k=k)
        merged[name] = groups
    return merged


def _counts(model: nn.Module, layers: dict[str, MoE], batches: list[Any]) -> dict[MoE, Tensor]:
    counts = {layer: torch.zeros(layer.router.num_experts, dtype=torch.float64) for layer in layers.values()}

    def listen(layer: MoE, routing: Routing, rows: Rows) -> None:
        del routing
        if layer in counts:
            counts[layer] += rows.counts_E.cpu()

    watch(model, batches, listen)
    return counts


def _similarity(layer: MoE, x_TD: Tensor, by: Similarity) -> Tensor:
    E = layer.router.num_experts
    if by == "router":
        seen_EN = layer.router.clean_logits(x_TD)[:, :E].T
    else:
        stack = stack_of(grouped(layer))
        seen_EN = torch.stack([dense_forward(stack, x_TD.to(stack.up), expert=e).flatten() for e in range(E)])
    unit_EN = nn.functional.normalize(seen_EN.float(), dim=1)
    return (unit_EN @ unit_EN.T).cpu()


def group_similar(similar_EE: Tensor, groups: int) -> list[list[int]]:
    """Join the two most similar groups, by the mean over their pairs, until so many are left.

    Example:
        >>> group_similar(torch.tensor([[1.0, 0.0, 0.9], [0.0, 1.0, 0.1], [0.9, 0.1, 1.0]]), 2)
        [[0, 2], [1]]
    """
    found = [[e] for e in range(similar_EE.shape[0])]
    while len(found) > groups:
        means = {(a, b): float(similar_EE[found[a]][:, found[b]].mean()) for b in range(len(found)) for a in range(b)}
        a, b = max(means, key=lambda pair: means[pair])
        found[a] = sorted(found[a] + found.pop(b))
    return sorted(found)


def _merge(layer: MoE, groups: list[list[int]], counts_E: Tensor, *, align: bool, k: int | None) -> None:
    experts, old_rows = grouped(layer), layer.router.weight
    stack, merged, rows = stack_of(experts), [], []
    for group in groups:
        weight = counts_E[group] + 1e-9  # a group that no token reached is averaged evenly
        busiest = group[int(weight.argmax())]
        members = take(stack, torch.tensor(group))
        if align:
            members = stack_cat([_aligned(stack, e, busiest) for e in group])
        merged.append(average(members, weight))
        if old_rows is not None:
            share = (weight / weight.sum()).to(old_rows)
            rows.append(share @ old_rows.detach()[group])
    select(layer, [group[0] for group in groups], k=k)
    layer.experts = experts_of(stack_cat(merged), dropout=experts.dropout).train(experts.training)
    if layer.router.weight is not None:
        layer.router.weight[: len(rows)] = torch.stack(rows)


def _aligned(stack: StackedMLP, expert: int, like: int) -> StackedMLP:
    """One expert with its hidden units in the order that matches another's best: the function stays."""
    member = take(stack, torch.tensor([expert]))
    if expert == like:
        return member
    order_F = match_units(member, take(stack, torch.tensor([like])))
    F = member.down.shape[2]
    rows = torch.cat([order_F, order_F + F]) if ACTIVATIONS[stack.activation].gated else order_F
    return member._replace(
        up=member.up[:, rows],
        down=member.down[:, :, order_F],
        up_bias=None if member.up_bias is None else member.up_bias[:, rows],
    )


def match_units(member: StackedMLP, like: StackedMLP) -> Tensor:
    """For each hidden unit of `like` the unit of `member` whose weights match it best, each once: int64 (F,).

    Source: Ainsworth et al. 2023 (Git Re-Basin), section 3.2, by an auction.

    Example:
        >>> up = torch.eye(3).unsqueeze(0)
        >>> other = up[:, [2, 0, 1]]
        >>> match_units(StackedMLP(up=other, down=other.mT), StackedMLP(up=up, down=up)).tolist()
        [1, 2, 0]
    """
    units = [_units(stack) for stack in (like, member)]
    score_FF = units[0] @ units[1].T
    return balanced_assignment(score_FF, epsilon=1e-3, rounds=4096)


def _units(stack: StackedMLP) -> Tensor:
    """Everything that belongs to each hidden unit, in one row: (F, ...)."""
    up = torch.cat(stack.up[0].chunk(1 + ACTIVATIONS[stack.activation].gated), dim=1)
    return nn.functional.normalize(torch.cat([up, stack.down[0].T], dim=1).float(), dim=1)
