"""A kernel's two passes behind one pair of ops, for whatever traces: torch.compile, torch.export, torch.func, fakes.

A graph holds `mixtura::grouped_mlp` and `mixtura::grouped_mlp_backward` with the kernel's name. What they compute does
not show in it, only its shapes do, and these do not depend on the experts' counts. Between the passes lies z in the
order of the rows, the same for every kernel. Plain eager calls do not come here: dispatching an op costs tens of
microseconds.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from mixtura.errors import UserError
from mixtura.kernels.activations import StackedMLP
from mixtura.kernels.rows import Function, RowIndex


class Wanted(NamedTuple):
    """Of which inputs a gradient is wanted.

    Example:
        >>> Wanted(True, False, False, False, False, False).x
        True
    """

    x: bool
    weight: bool
    up: bool
    down: bool
    up_bias: bool
    down_bias: bool


class Gradients(NamedTuple):
    """The gradients, shaped like the inputs; None where it was not wanted.

    Example:
        >>> Gradients(x=torch.zeros(1)).up is None
        True
    """

    x: Tensor | None = None
    weight: Tensor | None = None
    up: Tensor | None = None
    down: Tensor | None = None
    up_bias: Tensor | None = None
    down_bias: Tensor | None = None


class Forward(Protocol):
    """Gives the weighted outputs (N, D), zeros in the tail, and z (N, F or 2F), or (0, *) where it is not kept.

    z is the pre-activation, biases included, in the order of the rows; in the tail it may be anything.

    Example:
        >>> callable(PASSES["reference"].forward)
        True
    """

    def __call__(
        self,
        x_TD: Tensor,
        weight_N: Tensor,
        index: RowIndex,
        *,
        experts: StackedMLP,
        keep_NF: Tensor | None,
        keep_z: bool,
    ) -> tuple[Tensor, Tensor]:
        """Compute; every tensor is contiguous."""


class Backward(Protocol):
    """Gives the wanted gradients from the output's and from the kept z.

    Example:
        >>> callable(PASSES["reference"].backward)
        True
    """

    def __call__(
        self,
        dy_ND: Tensor,
        x_TD: Tensor,
        weight_N: Tensor,
        *,
        index: RowIndex,
        experts: StackedMLP,
        keep_NF: Tensor | None,
        z: Tensor,
        wanted: Wanted,
    ) -> Gradients:
        """Compute; every tensor is contiguous."""


class Passes(NamedTuple):
    """A kernel as two functions without a graph.

    Example:
        >>> Passes._fields
        ('forward', 'backward')
    """

    forward: Forward
    backward: Backward


PASSES: dict[str, Passes] = {}


def register(name: str, *, forward: Forward, backward: Backward) -> str:
    """Make two passes known to the ops under a kernel's name; gives the name, which `call` takes.

    Example:
        >>> def forward(x_TD, weight_N, index, *, experts, keep_NF, keep_z):
        ...     return x_TD * weight_N.unsqueeze(-1), x_TD.new_empty(x_TD.shape[0] if keep_z else 0, 1)
        >>> def backward(dy_ND, x_TD, weight_N, *, index, experts, keep_NF, z, wanted):
        ...     return Gradients(x=dy_ND * weight_N.unsqueeze(-1))
        >>> name = register("doctest", forward=forward, backward=backward)
        >>> index = RowIndex(torch.tensor([0]), torch.tensor([1]), torch.tensor([[0]]), 1, True)
        >>> experts = StackedMLP(up=torch.ones(1, 1, 1), down=torch.ones(1, 1, 1))
        >>> x = torch.tensor([[3.0]], requires_grad=True)
        >>> call(name, x, torch.tensor([2.0]), index=index, experts=experts, keep_NF=None).backward()
        >>> x.grad.tolist(), PASSES.pop(name).forward is forward
        ([[2.0]], True)
    """
    PASSES[name] = Passes(forward, backward)
    return name


def call(
    name: str, x_TD: Tensor, weight_N: Tensor, *, index: RowIndex, experts: StackedMLP, keep_NF: Tensor | None
) -> Tensor:
    """Call the ops with the values that kernels take; z is kept where a gradient may be asked for.

    Example:
        >>> index = RowIndex(torch.tensor([0]), torch.tensor([1]), torch.tensor([[0]]), 1, True)
        >>> experts = StackedMLP(up=torch.ones(1, 1, 1), down=torch.ones(1, 1, 1))
        >>> x, weight = torch.tensor([[3.0]]), torch.tensor([2.0])
        >>> call("reference", x, weight, index=index, experts=experts, keep_NF=None).tolist()
        [[6.0]]
    """
    up, down, up_bias, down_bias, activation = experts
    leaves = (x_TD, weight_N, up, down, up_bias, down_bias)
    # Of a batch inside torch.func.vmap nobody can tell whether its parts want gradients.
    keep_z = torch._C._are_functorch_transforms_active() or (
        torch.is_grad_enabled() and any(leaf is not None and leaf.requires_grad for leaf in leaves)
    )
    token_N, counts_E, slot_TK, _, dropless = index
    y_ND: Tensor = _GroupedMLP.call(*leaves, keep_NF, token_N, counts_E, slot_TK, dropless, activation, name, keep_z)[0]
    return y_ND


class _Refuse(Function):
    """Its input unchanged; whoever differentiates it is told that there is no second derivative."""

    @staticmethod
    def forward(*inputs: Any) -> Tensor:
        gradient: Tensor = inputs[0]
        return gradient.view_as(gradient)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], _: Tensor) -> None:
        del ctx, inputs

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        del ctx
        raise UserError(
            "expected first derivatives of the experts, got a second one; eager calls have it inside "
            'mixtura.kernels.use("reference")'
        )


def first_derivative_only(backward: Callable[..., tuple[Tensor | None, ...]]) -> Callable[..., Any]:
    """Make a backward pass that is no graph refuse to be differentiated, for torch.func too.

    Torch's `once_differentiable` refuses only where the gradient that comes in depends on something, and never inside
    torch.func: what depends on the saved tensors is then silently left out.

    Example:
        >>> callable(first_derivative_only(lambda ctx, grad: (grad,)))
        True
    """

    @functools.wraps(backward)
    def guarded(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        with torch.no_grad():
            found = backward(ctx, *grads)
        if not torch.is_grad_enabled() or torch.compiler.is_compiling():
            return found
        sources = [t for t in (*grads, *ctx.saved_tensors) if isinstance(t, Tensor) and t.is_floating_point()]
        return tuple(None if gradient is None else _Refuse.call(gradient, *sources) for gradient in found)

    return guarded


class _GroupedMLP(Function):
    """An op with an autograd formula of its own cannot be transformed by torch.func; a function around two ops can."""

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, Tensor]:
        result: tuple[Tensor, Tensor] = torch.ops.mixtura.grouped_mlp(*inputs)
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        *tensors, ctx.dropless, ctx.activation, ctx.name, _ = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(*tensors, output[1])

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, dy_ND: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        wanted = list(ctx.needs_input_grad[:6])
        found = torch.ops.mixtura.grouped_mlp_backward(
            dy_ND, *ctx.saved_tensors, ctx.dropless, ctx.activation, ctx.name, wanted
        )
        gradients = iter(found)
        return (*(next(gradients) if want else None for want in wanted), *(None,) * 8)


_TENSORS = (
    "Tensor x, Tensor weight, Tensor up, Tensor down, Tensor? up_bias, Tensor? down_bias, Tensor? keep, "
    "Tensor token, Tensor counts, Tensor? slot"
)
_LIBRARY = torch.library.Library("mixtura", "FRAGMENT")


def _values(tensors: tuple[Any, ...], *, dropless: bool, activation: str) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """What the passes take, made of what the ops take."""
    tensors = tuple(tensor if tensor is None else tensor.contiguous() for tensor in tensors)
    x_TD, weight_N, up, down, up_bias, down_bias, keep_NF, token_N, counts_E, slot_TK = tensors
    index = RowIndex(token_N, counts_E, slot_TK, x_TD.shape[0], dropless)
    experts = StackedMLP(up, down, up_bias, down_bias, activation)
    return x_TD, weight_N, {"index": index, "experts": experts, "keep_NF": keep_NF}


def _forward(*arguments: Any) -> tuple[Tensor, Tensor]:
    *tensors, dropless, activation, kernel, keep_z = arguments
    x_TD, weight_N, values = _values(tuple(tensors), dropless=dropless, activation=activation)
    return PASSES[kernel].forward(x_TD, weight_N, **values, keep_z=keep_z)


def _forward_shapes(*arguments: Any) -> tuple[Tensor, Tensor]:
    x_TD, up, down, token_N, keep_z = (arguments[place] for place in (0, 2, 3, 7, -1))
    N = token_N.shape[0]
    return x_TD.new_empty(N, down.shape[1]), x_TD.new_empty(N if keep_z else 0, up.shape[1])


def _backward(dy_ND: Tensor, *arguments: Any) -> list[Tensor]:
    *tensors, z, dropless, activation, kernel, wanted = arguments
    x_TD, weight_N, values = _values(tuple(tensors), dropless=dropless, activation=activation)
    found = PASSES[kernel].backward(dy_ND.contiguous(), x_TD, weight_N, **values, z=z, wanted=Wanted(*wanted))
    return [gradient for gradient in found if gradient is not None]


def _backward_shapes(_: Tensor, *arguments: Any) -> list[Tensor]:
    return [
        torch.empty_like(leaf, memory_format=torch.contiguous_format)
        for leaf, want in zip(arguments[:6], arguments[-1], strict=True)
        if want
    ]


def _one_by_one(op: Callable[..., Any]) -> Callable[..., Any]:
    """Under `torch.func.vmap`: the op on each part of the batch, one after another."""

    def rule(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Any, Any]:
        outputs = [
            op(*(a.select(dim, part) if isinstance(dim, int) else a for a, dim in zip(arguments, in_dims, strict=True)))
            for part in range(info.batch_size)
        ]
        stacked = type(outputs[0])(torch.stack(parts) for parts in zip(*outputs, strict=True))
        return stacked, type(stacked)(0 for _ in stacked)

    return rule


def _define(name: str, schema: str, run: Callable[..., Any], shapes: Callable[..., Any]) -> None:
    _LIBRARY.define(f"{name}{schema}", tags=(torch.Tag.pt2_compliant_tag,))
    _LIBRARY.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"mixtura::{name}", shapes, lib=_LIBRARY)
    torch.library.register_vmap(f"mixtura::{name}", _one_by_one(getattr(torch.ops.mixtura, name)), lib=_LIBRARY)


_define(
    "grouped_mlp",
    f"({_TENSORS}, bool dropless, str activation, str kernel, bool keep_z) -> (Tensor, Tensor)",
    _forward,
    _forward_shapes,
)
# For graphs that were traced without the function around the op: exported ones.
torch.library.register_autograd(
    "mixtura::grouped_mlp", _GroupedMLP.backward, setup_context=_GroupedMLP.setup_context, lib=_LIBRARY
)
_define(
    "grouped_mlp_backward",
    f"(Tensor dy, {_TENSORS}, Tensor z, bool dropless, str activation, str kernel, bool[] wanted) -> Tensor[]",
    _backward,
    _backward_shapes,
)
