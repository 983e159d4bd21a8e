"""Edit a trained mixture: add, remove and split experts, close them to tokens and open them again."""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from mixtura.errors import UserError
from mixtura.kernels.activations import StackedMLP
from mixtura.layer import MoE
from mixtura.routers import Base, ExpertChoice, Router, Sinkhorn
from mixtura.surgery.initial import Random, cut, map_weights, take
from mixtura.surgery.layers import experts_of, grouped, mixtures, scale_output, stack_of, weight_sums
from mixtura.surgery.select import Numbers, check_numbers, numbers_of, select

CLOSED = -1e4  # exp of it is exactly 0, and nothing that is finite overflows
New = Literal["copy", "noise", "fresh"]


@torch.no_grad()
def add_experts(
    model: nn.Module,
    count: int = 1,
    *,
    init: New = "copy",
    source: Sequence[int] | None = None,
    std: float = 0.01,
    closed: bool = True,
) -> dict[str, list[int]]:
    """Give every mixture of a model more experts, in place.

    The new ones are closed: their logits lie so far below the others that no token chooses them, their weight is 0, and
    the model computes what it did before. `open_experts` lets them compete. Whatever they learn then, closing them
    again gives the old function back as long as the rest is frozen (`freeze_experts`).

    Args:
        model: with mixtures of `GroupedMLP` experts.
        count: how many.
        init: "copy" of existing ones and their rows of the router, copies with "noise", or "fresh": drawn anew.
        source: which ones to copy, `count` numbers; None: 0, 1, 2, and so on.
        std: of the noise, as a share of each matrix's own standard deviation.
        closed: False: they compete at once, and the function changes.

    Returns:
        The numbers of the new experts, by layer name.

    Raises:
        UserError: a count below 1, an unknown `init`, sources that do not exist; see also `select`.

    Example:
        >>> import mixtura as mx
        >>> layer = mx.MoEConfig(dim=4, hidden=8, num_experts=2).build()
        >>> x = torch.randn(3, 4)
        >>> before = layer(x)
        >>> add_experts(layer, 2, init="fresh"), torch.allclose(layer(x), before, atol=1e-6)
        ({'': [2, 3]}, True)
    """
    if count < 1:
        raise UserError(f"expected a count of at least 1, got {count}")
    if init not in get_args(New):
        raise UserError(f"expected init among {', '.join(get_args(New))}, got {init!r}")
    if source is not None and len(source) != count:
        raise UserError(f"expected one source for each of {count} new experts, got {len(source)}")
    added = {}
    for layer in mixtures(model).values():
        if closed:
            _check_closable(layer.router)
    for name, layer in mixtures(model).items():
        E = layer.router.num_experts
        copied = [number % E for number in range(count)] if source is None else list(source)
        check_numbers(layer, sorted(set(copied)), name=name)
        select(layer, [*range(E), *copied])
        added[name] = [*range(E, E + count)]
        if init != "copy":
            _change(layer, added[name], init=init, std=std)
    if closed:
        close_experts(model, added)
    return added


def _change(layer: MoE, numbers: list[int], *, init: New, std: float) -> None:
    experts, router = grouped(layer), layer.router
    new = take(stack_of(experts), torch.tensor(numbers))
    if init == "noise":
        new = map_weights(new, lambda w: w + std * w.std(dim=(1, 2), keepdim=True) * torch.randn_like(w))
    else:
        new = Random.drawn(new)
        if router.weight is not None:
            router.weight[numbers] = router.init_std * torch.randn_like(router.weight[numbers])
    _write(layer, numbers, new)


def _write(layer: MoE, numbers: list[int], stack: StackedMLP) -> None:
    experts = grouped(layer)
    for name, tensor in zip(("up_proj", "down_proj", "up_bias", "down_bias"), stack, strict=False):
        if isinstance(tensor, Tensor):
            getattr(experts, name)[numbers] = tensor


def remove_experts(model: nn.Module, experts: Numbers, *, k: int | None = None) -> None:
    """Take experts out of every mixture of a model, in place; routers share the weight out among those that stay.

    Args:
        model: with mixtures of `GroupedMLP` experts.
        experts: numbers, in every layer the same, or by layer name.
        k: choices per token from now on; None: as before.

    Raises:
        UserError: numbers that do not exist, too few experts left; see also `select`.

    Example:
        >>> import mixtura as mx
        >>> layer = mx.MoEConfig(dim=4, hidden=8, num_experts=4, k=2).build()
        >>> remove_experts(layer, [0, 2]); layer.experts.num_experts
        2
    """
    layers = mixtures(model)
    for name, layer in layers.items():
        check_numbers(layer, numbers_of(experts, name), name=name)
    for name, layer in layers.items():
        gone = set(numbers_of(experts, name))
        if gone:
            select(layer, [number for number in range(layer.router.num_experts) if number not in gone], k=k)


@torch.no_grad()
def split_experts(model: nn.Module, parts: int = 2, *, by: Literal["units", "copies"] = "units") -> None:
    """Make `parts` experts of each, and k * parts choices of k, in place; the function stays what it is.

    The parts of an expert have one row of the router and are chosen together until they learn to differ. Cut by hidden
    units they are slices (DeepSeekMoE's fine grain: equal parameters and work); as copies they are whole.

    Args:
        model: with mixtures of `GroupedMLP` experts.
        parts: how many of each.
        by: "units" or "copies".

    Raises:
        UserError: `parts` below 1 or, by units, no divisor of the hidden width; a router whose weights change by
            different factors for different tokens; see also `select`.

    Example:
        >>> import mixtura as mx
        >>> layer = mx.MoEConfig(dim=4, hidden=8, num_experts=2, k=1, router="sigmoid_bias",
        ...                      router_options={"renormalize": False}).build()
        >>> x = torch.randn(3, 4)
        >>> before = layer(x)
        >>> split_experts(layer); torch.allclose(layer(x), before, atol=1e-6)
        True
    """
    if parts < 1 or by not in ("units", "copies"):
        raise UserError(f'expected parts of at least 1, by "units" or "copies", got {parts} by {by!r}')
    for name, layer in mixtures(model).items():
        experts, router = grouped(layer), layer.router
        E, F = experts.num_experts, experts.hidden
        if by == "units" and F % parts:
            raise UserError(f"expected parts that divide the hidden width {F} of {name or 'the layer'}, got {parts}")
        x_TD = torch.randn(64, router.dim)
        before_T = weight_sums(router, x_TD)
        select(layer, [number for number in range(E) for _ in range(parts)], k=router.k * parts)
        ratio_T = weight_sums(router, x_TD) / before_T
        if float(ratio_T.max() - ratio_T.min()) > 1e-4 * float(ratio_T.mean()):
            raise UserError(f"expected a router that weights the parts of an expert alike, got {router}")
        stack = stack_of(grouped(layer))
        if by == "units":
            units = torch.arange(F, device=stack.down.device).view(parts, F // parts)
            slices = [cut(take(stack, torch.tensor([e * parts])), units) for e in range(E)]
            stack = stack_cat(slices)
        factor = (parts if by == "units" else 1) / float(ratio_T.mean())
        layer.experts = experts_of(scale_output(stack, factor), dropout=experts.dropout).train(experts.training)


def stack_cat(stacks: Sequence[StackedMLP]) -> StackedMLP:
    """All experts of several stacks in one.

    Example:
        >>> one = torch.ones(1, 1, 1)
        >>> stack_cat([StackedMLP(up=one, down=one)] * 3).up.shape
        torch.Size([3, 1, 1])
    """
    columns = zip(*(stack[:4] for stack in stacks), strict=True)
    up, down, up_bias, down_bias = (None if each[0] is None else torch.cat(each) for each in columns)
    assert up is not None
    assert down is not None
    return StackedMLP(up, down, up_bias, down_bias, stacks[0].activation)


def close_experts(model: nn.Module, experts: Numbers) -> None:
    """Keep tokens from choosing some experts, without changing what these are; `open_experts` undoes it.

    Which are closed is part of the state dict, as `router.offset`; with all open there is no such key.

    Raises:
        UserError: numbers that do not exist, or none left open; a router that fills all experts alike (`Base`,
            `Sinkhorn`, `ExpertChoice`) or has no logits.

    Example:
        >>> import mixtura as mx
        >>> layer = mx.MoEConfig(dim=4, hidden=8, num_experts=4, k=1, router="hard").build()
        >>> close_experts(layer, [0, 1, 3])
        >>> layer.router(torch.randn(2, 4)).expert_N.tolist()
        [2, 2]
    """
    for name, layer in mixtures(model).items():
        router, numbers = layer.router, numbers_of(experts, name)
        check_numbers(layer, numbers, name=name)
        _check_closable(router)
        offset = _offset(router, numbers, CLOSED)
        if not (offset[: router.num_experts] == 0).any():
            raise UserError(f"expected some experts to stay open in {name or 'the layer'}, got all to close")
        router.offset = offset


def _check_closable(router: Router) -> None:
    if not router.has_gate or isinstance(router, Base | Sinkhorn | ExpertChoice):
        raise UserError(f"expected a router whose tokens choose by its logits, got {type(router).__name__}")


def open_experts(model: nn.Module, experts: Numbers | None = None) -> None:
    """Let tokens choose closed experts again.

    Args:
        model: with mixtures.
        experts: numbers, in every layer the same, or by layer name; None: all.

    Example:
        >>> import mixtura as mx
        >>> layer = mx.MoEConfig(dim=4, hidden=8, num_experts=4).build()
        >>> close_experts(layer, [0]); open_experts(layer); layer.router.offset is None
        True
    """
    for name, layer in mixtures(model).items():
        router = layer.router
        numbers = [*range(router.num_experts)] if experts is None else numbers_of(experts, name)
        check_numbers(layer, numbers, name=name)
        if router.offset is not None:
            offset = _offset(router, numbers, 0.0)
            router.offset = offset if offset.any() else None


def _offset(router: Router, numbers: list[int], value: float) -> Tensor:
    offset = torch.zeros(router.num_logits) if router.offset is None else router.offset.clone()
    offset[numbers] = value
    return offset.to(next((p.device for p in router.parameters()), offset.device))
