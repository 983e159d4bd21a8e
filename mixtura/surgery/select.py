"""The one operation under all editing: a mixture's experts in another order, some repeated, some left out."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from mixtura import routers
from mixtura.errors import UserError
from mixtura.layer import MoE
from mixtura.routers.base import Router
from mixtura.surgery.initial import take
from mixtura.surgery.layers import experts_of, grouped, stack_of

EDITABLE = (
    *(routers.TopK, routers.Gate, routers.Switch, routers.NoisyTopK, routers.SigmoidBias, routers.Dense, routers.Hard),
    *(routers.GShard, routers.TopP, routers.ExpertChoice, routers.Sinkhorn, routers.Base, routers.Random),
)
# Tensors of a router with one row for each expert.
_ROWS = ("weight", "noise_weight", "bias", "pending_counts", "offset")

Numbers = Sequence[int] | Mapping[str, Sequence[int]]


def numbers_of(numbers: Numbers, name: str) -> list[int]:
    """The experts meant in one layer: a list means the same in all layers, a mapping goes by layer name.

    Example:
        >>> numbers_of([1, 2], "a"), numbers_of({"a": [3]}, "a"), numbers_of({"a": [3]}, "b")
        ([1, 2], [3], [])
    """
    return list(numbers.get(name, ()) if isinstance(numbers, Mapping) else numbers)


def check_numbers(layer: MoE, numbers: Sequence[int], *, name: str) -> None:
    """Refuse numbers of experts that a layer has not, and any of them twice.

    Raises:
        UserError: see above.

    Example:
        >>> import mixtura as mx
        >>> check_numbers(mx.MoEConfig(dim=4, hidden=8, num_experts=2).build(), [2], name="mlp")
        Traceback (most recent call last):
        ...
        mixtura.errors.UserError: expected different experts from 0 to 1 of mlp, got [2]
    """
    E = layer.router.num_experts
    if len(set(numbers)) < len(numbers) or not all(0 <= number < E for number in numbers):
        raise UserError(f"expected different experts from 0 to {E - 1} of {name or 'the layer'}, got {list(numbers)}")


@torch.no_grad()
def select(layer: MoE, index: Sequence[int], *, k: int | None = None) -> None:
    """Make a mixture's experts those of these numbers, in place, and its router's rows with them.

    Args:
        layer: with `GroupedMLP` experts and one of the routers that have one row for each expert.
        index: numbers of experts as they are now; repeated ones become copies.
        k: choices per token from now on; None: as before.

    Raises:
        UserError: a router or a gate that has no such rows, fewer experts than choices, frozen or adapted experts.

    Example:
        >>> import mixtura as mx
        >>> layer = mx.MoEConfig(dim=4, hidden=8, num_experts=4, k=2).build()
        >>> row = layer.router.weight[3].detach().clone()
        >>> select(layer, [3, 0, 3])
        >>> layer.experts.num_experts, torch.equal(layer.router.weight[2], row)
        (3, True)
    """
    experts, router = grouped(layer), layer.router
    if is_parametrized(experts) or is_parametrized(router):
        raise UserError("expected experts without frozen or adapted parts, got some; unfreeze_experts, or merge_lora")
    _check(router)
    k = _choices(router, len(index)) if k is None else k
    if not 1 <= k <= len(index):
        raise UserError(f"expected at least k={k} experts to stay, got {len(index)}; choose a smaller k")
    index_E = torch.tensor(list(index))
    _select_rows(router, index_E)
    chosen = experts_of(take(stack_of(experts), index_E), dropout=experts.dropout).train(experts.training)
    for name, parameter in chosen.named_parameters():
        parameter.requires_grad_(experts.get_parameter(name).requires_grad)
    layer.experts = chosen
    if router.noise == 1 / router.num_experts:  # as V-MoE has it
        router.noise = 1 / len(index)
    router.num_experts, router.k = len(index), k


def _choices(router: Router, num_experts: int) -> int:
    if isinstance(router, routers.Dense):
        return num_experts
    return min(2, num_experts) if isinstance(router, routers.GShard) else router.k


def _check(router: Router) -> None:
    if type(router) not in EDITABLE or (isinstance(router, routers.SigmoidBias) and router.groups > 1):
        known = ", ".join(kind.__name__ for kind in EDITABLE)
        raise UserError(f"expected a router among {known}, without groups, got {router}")


def _select_rows(router: Router, index_E: Tensor) -> None:
    E, rows = router.num_experts, index_E
    if router.null_experts is not None:
        rows = torch.cat([index_E, torch.arange(E, router.num_logits)])
    owners: list[tuple[nn.Module, tuple[str, ...]]] = [(router, _ROWS)]
    if router.gate is not None:
        owners.append(_last_of(router.gate))
    for owner, names in owners:
        for name in names:
            tensor = getattr(owner, name, None)
            if isinstance(tensor, Tensor):
                chosen = tensor[rows.to(tensor.device) if tensor.shape[0] == router.num_logits else index_E]
                is_learned = isinstance(tensor, nn.Parameter)
                setattr(owner, name, nn.Parameter(chosen, tensor.requires_grad) if is_learned else chosen)


def _last_of(gate: nn.Module) -> tuple[nn.Module, tuple[str, ...]]:
    """The part of a gate with one row for each expert."""
    last = gate[-1] if isinstance(gate, nn.Sequential) else gate
    if isinstance(last, routers.CosineGate):
        return last, ("vectors",)
    if isinstance(last, nn.Linear):
        return last, ("weight", "bias")
    raise UserError(f"expected a gate that ends in a linear layer, got {type(gate).__name__}")
