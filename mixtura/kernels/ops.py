"""Two passes of plain tensors become one differentiable custom op, so that torch.compile keeps one graph.

What a kernel computes does not show in the graph, only its shapes do, and they do not depend on the experts' counts:
other counts need no other graph. The backward pass is an op of its own; a second derivative is refused by torch.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from mixtura.kernels.activations import StackedMLP
from mixtura.kernels.rows import RowIndex


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
    """Gives the weighted outputs (N, D), zeros in the tail, and z (N, F or 2F), or (0, *) where it is not kept."""

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
    """Gives the wanted gradients from the output's and from the kept z."""

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


Op = Callable[..., tuple[Tensor, Tensor]]


def register(name: str, *, forward: Forward, backward: Backward) -> Op:
    """Register `mixtura::NAME` and `mixtura::NAME_backward`; gives the op, which `call` calls.

    Example:
        >>> def forward(x_TD, weight_N, index, *, experts, keep_NF, keep_z):
        ...     return x_TD * weight_N.unsqueeze(-1), x_TD.new_empty(0, 1)
        >>> def backward(dy_ND, x_TD, weight_N, *, index, experts, keep_NF, z, wanted):
        ...     return Gradients(x=dy_ND * weight_N.unsqueeze(-1))
        >>> op = register("doctest", forward=forward, backward=backward)
        >>> index = RowIndex(torch.tensor([0]), torch.tensor([1]), torch.tensor([[0]]), 1, True)
        >>> experts = StackedMLP(up=torch.ones(1, 1, 1), down=torch.ones(1, 1, 1))
        >>> x = torch.tensor([[3.0]], requires_grad=True)
        >>> call(op, x, torch.tensor([2.0]), index=index, experts=experts, keep_NF=None).backward()
        >>> x.grad.tolist()
        [[2.0]]
    """
    differentiate = _register_backward(name, backward)

    def compute(
        x_TD: Tensor,
        weight_N: Tensor,
        up: Tensor,
        down: Tensor,
        up_bias: Tensor | None,
        down_bias: Tensor | None,
        keep_NF: Tensor | None,
        token_N: Tensor,
        counts_E: Tensor,
        slot_TK: Tensor | None,
        dropless: bool,  # noqa: FBT001  # an op's arguments are passed by place
        activation: str,
        keep_z: bool,  # noqa: FBT001  # an op's arguments are passed by place
    ) -> tuple[Tensor, Tensor]:
        index = RowIndex(token_N, counts_E, slot_TK, x_TD.shape[0], dropless)
        experts = StackedMLP(up.contiguous(), down.contiguous(), up_bias, down_bias, activation)
        return forward(x_TD.contiguous(), weight_N, index, experts=experts, keep_NF=keep_NF, keep_z=keep_z)

    def shapes(x_TD: Tensor, _: Tensor, up: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
        N, keep_z = others[4].shape[0], others[-1]
        return x_TD.new_empty(N, x_TD.shape[1]), x_TD.new_empty(N if keep_z else 0, up.shape[1])

    def keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        *tensors, ctx.dropless, ctx.activation, _ = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, output[1])

    op = torch.library.custom_op(f"mixtura::{name}", compute, mutates_args=())
    op.register_fake(shapes)
    op.register_autograd(differentiate, setup_context=keep)
    return op


def _register_backward(name: str, backward: Backward) -> Callable[..., tuple[Tensor | None, ...]]:
    def compute(
        dy_ND: Tensor,
        x_TD: Tensor,
        weight_N: Tensor,
        up: Tensor,
        down: Tensor,
        up_bias: Tensor | None,
        down_bias: Tensor | None,
        keep_NF: Tensor | None,
        token_N: Tensor,
        counts_E: Tensor,
        slot_TK: Tensor | None,
        z: Tensor,
        dropless: bool,  # noqa: FBT001  # an op's arguments are passed by place
        activation: str,
        wanted: list[bool],
    ) -> list[Tensor]:
        index = RowIndex(token_N, counts_E, slot_TK, x_TD.shape[0], dropless)
        experts = StackedMLP(up.contiguous(), down.contiguous(), up_bias, down_bias, activation)
        gradients = backward(
            dy_ND.contiguous(),
            x_TD.contiguous(),
            weight_N,
            index=index,
            experts=experts,
            keep_NF=keep_NF,
            z=z,
            wanted=Wanted(*wanted),
        )
        return [gradient for gradient in gradients if gradient is not None]

    def shapes(_: Tensor, *inputs: Any) -> list[Tensor]:
        return [
            torch.empty_like(like, memory_format=torch.contiguous_format)
            for like, want in zip(inputs[:6], inputs[-1], strict=True)
            if want
        ]

    op = torch.library.custom_op(f"mixtura::{name}_backward", compute, mutates_args=())
    op.register_fake(shapes)

    def differentiate(ctx: Any, dy_ND: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        wanted = [want and dy_ND is not None for want in ctx.needs_input_grad[:6]]
        found = iter(op(dy_ND, *ctx.saved_tensors, ctx.dropless, ctx.activation, wanted) if any(wanted) else ())
        return (*(next(found) if want else None for want in wanted), *(None,) * 7)

    return differentiate


def call(
    op: Op, x_TD: Tensor, weight_N: Tensor, *, index: RowIndex, experts: StackedMLP, keep_NF: Tensor | None
) -> Tensor:
    """Call a registered op with the values that kernels take; z is kept where a gradient may be asked for."""
    up, down, up_bias, down_bias, activation = experts
    leaves = (x_TD, weight_N, up, down, up_bias, down_bias)
    keep_z = torch.is_grad_enabled() and any(leaf is not None and leaf.requires_grad for leaf in leaves)
    token_N, counts_E, slot_TK, _, dropless = index
    return op(*leaves, keep_NF, token_N, counts_E, slot_TK, dropless, activation, keep_z)[0]
