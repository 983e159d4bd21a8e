"""Models trained apart become one: averaged, or their MLPs made the experts of a mixture (branch-train-mix)."""

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from mixtura.config import MoEConfig
from mixtura.errors import UserError
from mixtura.experts import GroupedMLP
from mixtura.layer import MoE
from mixtura.surgery.batches import inputs_of
from mixtura.surgery.edit import stack_cat
from mixtura.surgery.layers import experts_of, grouped, mixtures, scale_output, stack_of, weight_sums
from mixtura.surgery.select import select
from mixtura.surgery.sites import find_mlps

Fusion = Literal["average", "mix"]


def fuse(
    models: Sequence[nn.Module],
    *,
    method: Fusion = "mix",
    weights: Sequence[float] | None = None,
    match: str = "*",
    k: int = 2,
    router: str = "topk",
) -> nn.Module:
    """One model of several that were trained apart from a common start; they stay as they are.

    "average": every parameter is the weighted mean. "mix" (branch-train-mix): each model's dense MLPs become the
    experts of a mixture, everything else is averaged; the routers are new and must be trained. Where the models have
    mixtures already, all their experts come into one, with the rows of their routers.

    Source: Sukhbaatar et al. 2024 (Branch-Train-MiX), section 3; Wortsman et al. 2022 (Model soups) for averages.

    Args:
        models: of the same shape.
        method: see above.
        weights: of the average, for each model; None: the same for all.
        match: with "mix", a pattern of the MLPs' names, see `find_mlps`.
        k: with "mix", experts per token.
        router: with "mix", a name in `mixtura.routers.ROUTERS`.

    Raises:
        UserError: fewer than two models, models of different shapes, weights that are no weights, nothing to mix.

    Example:
        >>> import mixtura as mx
        >>> branches = [nn.Sequential(mx.MLP(dim=4, hidden=8), nn.Linear(4, 4)) for _ in range(3)]
        >>> fuse(branches, k=2)[0].experts.num_experts
        3
    """
    if method not in get_args(Fusion):
        raise UserError(f"expected a method among {', '.join(get_args(Fusion))}, got {method!r}")
    if len(models) < 2:
        raise UserError(f"expected at least two models, got {len(models)}")
    states = [model.state_dict() for model in models]
    fused = copy.deepcopy(models[0])
    fused.load_state_dict(average_states(states, weights))
    return fused if method == "average" else _mix(fused, models, match=match, k=k, router=router)


@torch.no_grad()
def aim_routers(model: nn.Module, data: Sequence[Iterable[Any]], *, strength: float = 1.0) -> None:
    """Point every router of a fused model at what its experts were trained on, in place: no training, but a start.

    Row e of a router's matrix becomes the mean of what the layer is given for the e-th expert's texts or prompts, less
    the mean over all experts, scaled so that the logits of these tokens deviate by `strength`.

    Source: the gates from hidden states of mergekit (Goddard et al. 2024).

    Args:
        model: with mixtures of `GroupedMLP` experts.
        data: for each expert some batches that the model is called with, see `moefy`.
        strength: standard deviation of the logits.

    Raises:
        UserError: not as many sets of batches as experts, a router without a matrix, batches that reach no mixture.

    Example:
        >>> import mixtura as mx
        >>> layer = mx.MoEConfig(dim=2, hidden=4, num_experts=2).build()
        >>> aim_routers(layer, [[torch.tensor([[1.0, 0.0]])], [torch.tensor([[0.0, 1.0]])]])
        >>> layer.router(torch.tensor([[1.0, 0.0], [0.0, 1.0]])).first_choice_T().tolist()
        [0, 1]
    """
    layers = mixtures(model)
    for name, layer in layers.items():
        E, weight = layer.router.num_experts, layer.router.weight
        if len(data) != E or weight is None or weight.shape[0] != E:
            here = f"{name or 'the layer'} with {layer.router}"
            raise UserError(f"expected data for each expert of a router with a matrix, got {len(data)} sets for {here}")
    seen = [inputs_of(model, list(layers), batches) for batches in data]
    for name, layer in layers.items():
        means_ED = torch.stack([inputs[name].float().mean(0) for inputs in seen])
        rows_ED = means_ED - means_ED.mean(0)
        spread = (torch.cat([inputs[name].float() for inputs in seen]) @ rows_ED.T).std().clamp(min=1e-12)
        assert layer.router.weight is not None
        layer.router.weight.copy_(rows_ED * (strength / spread))


@torch.no_grad()
def average_states(states: Sequence[dict[str, Tensor]], weights: Sequence[float] | None = None) -> dict[str, Tensor]:
    """The weighted mean of state dicts; what is no real number (counts, tables) is the first one's.

    Raises:
        UserError: different keys or shapes; negative weights, weights that sum to 0, or not one for each.

    Example:
        >>> average_states([{"w": torch.tensor(1.0)}, {"w": torch.tensor(4.0)}], weights=[2, 1])
        {'w': tensor(2.)}
    """
    given = [1.0] * len(states) if weights is None else [float(weight) for weight in weights]
    if len(given) != len(states) or min(given) < 0 or not 0 < sum(given) < float("inf"):
        raise UserError(f"expected a weight of at least 0 for each of {len(states)} models, got {given}")
    shapes = [{name: tuple(tensor.shape) for name, tensor in state.items()} for state in states]
    for number, shape in enumerate(shapes):
        if shape != shapes[0]:
            different = sorted(name for name in {*shape, *shapes[0]} if shape.get(name) != shapes[0].get(name))
            raise UserError(f"expected models of one shape, got number {number} with another {different[0]}")
    shares = [weight / sum(given) for weight in given]
    result = {}
    for name, first in states[0].items():
        if first.is_floating_point():
            total = sum(share * state[name].double() for share, state in zip(shares, states, strict=True))
            assert isinstance(total, Tensor)
            result[name] = total.to(first.dtype)
        else:
            result[name] = first.clone()
    return result


def greedy_soup(
    states: Sequence[dict[str, Tensor]], loss: Callable[[dict[str, Tensor]], float]
) -> tuple[dict[str, Tensor], list[int]]:
    """Average models one by one, best first, keeping each only if the average gets no worse.

    Source: Wortsman et al. 2022 (Model soups), recipe 1.

    Args:
        states: of the same shape.
        loss: what the average is judged by, on held-out data: lower is better.

    Returns:
        The average, and the numbers of the models in it, in the order in which they came in.

    Example:
        >>> states = [{"w": torch.tensor(value)} for value in (5.0, 1.0, -1.0)]
        >>> greedy_soup(states, lambda state: state["w"].abs().item())
        ({'w': tensor(0.)}, [1, 2])
    """
    losses = [loss(state) for state in states]
    order = sorted(range(len(states)), key=lambda number: losses[number])
    chosen, soup, best = order[:1], states[order[0]], losses[order[0]]
    for number in order[1:]:
        tried = average_states([states[each] for each in (*chosen, number)])
        reached = loss(tried)
        if reached <= best:
            chosen, soup, best = [*chosen, number], tried, reached
    return soup, chosen


def _mix(fused: nn.Module, models: Sequence[nn.Module], *, match: str, k: int, router: str) -> nn.Module:
    sites = [find_mlps(model, match) for model in models]
    places = [name for name, module in fused.named_modules() if isinstance(module, MoE)]
    if not sites[0] and not places:
        raise UserError(f"expected MLPs that match {match!r}, or mixtures, got neither")
    for site, *others in zip(*sites, strict=True):
        stack = stack_cat([each.mlp for each in (site, *others)])
        layer = MoEConfig(dim=site.dim, hidden=1, num_experts=len(models), k=k, router=router).build()
        layer.router.to(stack.up)
        share = float(weight_sums(layer.router).mean())
        layer.experts = experts_of(scale_output(stack, 1 / share), dropout=site.dropout)
        fused = site.install(fused, layer.train(fused.training))
    for name in places:
        _join(fused.get_submodule(name), [model.get_submodule(name) for model in models])
    return fused


@torch.no_grad()
def _join(layer: nn.Module, layers: Sequence[nn.Module]) -> None:
    """All experts of several mixtures, and the rows of their routers, in the first of them."""
    assert isinstance(layer, MoE)
    parts = [part for part in layers if isinstance(part, MoE) and isinstance(part.experts, GroupedMLP)]
    rows = [part.router.weight for part in parts]
    if len(parts) < len(layers) or any(row is None for row in rows) or layer.router.null_experts is not None:
        raise UserError("expected mixtures of GroupedMLP experts whose routers have a matrix, got others")
    E, experts = layer.router.num_experts, grouped(layer)
    select(layer, [*range(E)] * len(parts))
    layer.experts = experts_of(stack_cat([stack_of(grouped(part)) for part in parts]), dropout=experts.dropout)
    assert layer.router.weight is not None
    layer.router.weight.copy_(torch.cat([row for row in rows if row is not None]))
