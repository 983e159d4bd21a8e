"""Grouped MLP for CPUs: one autograd function that reads rows through indices and keeps only the pre-activation.

Kept for the backward pass: the layer's input x, the pre-activation z, the row weights and indices. The activation is
computed again; the weight's gradient is <dY W_down, a>, taken on the hidden side, so the expert's output is never kept.
Each expert's weight gradient is written once into one buffer. `layout` decides how rows meet products.
"""

from typing import Any

import torch
from torch import Tensor

from mixtura.kernels import ops
from mixtura.kernels.activations import StackedMLP, find
from mixtura.kernels.layout import Layout
from mixtura.kernels.ops import Gradients, Wanted, first_derivative_only
from mixtura.kernels.rows import RowIndex, is_traced


def _layout(index: RowIndex, down: Tensor) -> Layout:
    return Layout(index, macs_per_row=down.shape[1] * down.shape[2])


def _forward(
    x_TD: Tensor, weight_N: Tensor, layout: Layout, *, experts: StackedMLP, keep_NF: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The output rows (N, D), and the pre-activation z in the layout."""
    up, down, up_bias, down_bias, activation = experts
    # The bias enters before z is rounded: in bf16 a second rounding would flip the sign of many a small z.
    z = layout.product(layout.take(x_TD), up, transpose=True, bias=up_bias)
    w = layout.spread(weight_N).to(x_TD.dtype).unsqueeze(-1)
    a = find(activation).forward(z)
    if keep_NF is not None:
        a.mul_(layout.spread(keep_NF))
    y = layout.product(a.mul_(w), down, transpose=True)
    if down_bias is not None:
        y += layout.bias_rows(down_bias) * w
    return layout.compact(y), z


def _backward(
    dy_ND: Tensor,
    x_TD: Tensor,
    weight_N: Tensor,
    *,
    layout: Layout,
    experts: StackedMLP,
    keep_NF: Tensor | None,
    z: Tensor,
    wanted: Wanted,
) -> Gradients:
    """The gradients, from z in the layout."""
    up, down, _, down_bias, activation = experts
    w = layout.spread(weight_N).to(x_TD.dtype).unsqueeze(-1)
    dy = layout.spread(dy_ND)
    keep = None if keep_NF is None else layout.spread(keep_NF)
    # Frozen parts are not paid for: what only their gradients need stays empty.
    da = a = dz = z.new_empty(0)
    dweight_N = dx_TD = None
    wants_dz = wanted.x or wanted.up or wanted.up_bias
    if wants_dz or wanted.weight:
        da = layout.product(dy, down)
        if keep is not None:
            da.mul_(keep)
    if wants_dz:
        a, dz = find(activation).backward(da, z)
        dz.mul_(w)
    elif wanted.weight or wanted.down:
        a = find(activation).forward(z)
    if wanted.weight:
        dweight = torch.linalg.vecdot(da, a)
        if down_bias is not None:
            dweight += torch.linalg.vecdot(dy, layout.bias_rows(down_bias))
        dweight_N = layout.compact(dweight).to(weight_N.dtype)
    if wanted.x:
        dx_TD = layout.sum_to_tokens(layout.product(dz, up))
    return Gradients(
        dx_TD,
        dweight_N,
        _weight_grad(layout, dz, layout.take(x_TD), like=up) if wanted.up else None,
        _weight_grad(layout, dy, a.mul_(w if keep is None else keep * w), like=down) if wanted.down else None,
        layout.bias_grad(dz) if wanted.up_bias else None,
        layout.bias_grad(dy * w) if wanted.down_bias else None,
    )


def _weight_grad(layout: Layout, left: Tensor, right: Tensor, *, like: Tensor) -> Tensor:
    """The matrices' gradient, transposed in memory where they are: whoever made that view needs then no copy."""
    if like.stride(1) == 1 and like.stride(2) > 1:
        return layout.weight_grad(right, left).transpose(1, 2)
    return layout.weight_grad(left, right)


class _GroupedMLP(torch.autograd.Function):
    """For plain eager calls: z stays as the products left it, and where each row lies is found once."""

    @staticmethod
    def forward(
        ctx: Any,
        x_TD: Tensor,
        weight_N: Tensor,
        up: Tensor,
        down: Tensor,
        up_bias: Tensor | None,
        down_bias: Tensor | None,
        keep_NF: Tensor | None,
        index: RowIndex,
        activation: str,
    ) -> Tensor:
        experts, layout = StackedMLP(up, down, up_bias, down_bias, activation), _layout(index, down)
        y_ND, z = _forward(x_TD, weight_N, layout, experts=experts, keep_NF=keep_NF)
        ctx.save_for_backward(x_TD, weight_N, up, down, up_bias, down_bias, keep_NF, z)
        ctx.layout, ctx.activation = layout, activation
        return y_ND

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, dy_ND: Tensor) -> tuple[Tensor | None, ...]:
        x_TD, weight_N, up, down, up_bias, down_bias, keep_NF, z = ctx.saved_tensors
        found = _backward(
            dy_ND,
            x_TD,
            weight_N,
            layout=ctx.layout,
            experts=StackedMLP(up, down, up_bias, down_bias, ctx.activation),
            keep_NF=keep_NF,
            z=z,
            wanted=Wanted(*ctx.needs_input_grad[:6]),
        )
        return (*found, None, None, None)


def _traced_forward(
    x_TD: Tensor, weight_N: Tensor, index: RowIndex, *, experts: StackedMLP, keep_NF: Tensor | None, keep_z: bool
) -> tuple[Tensor, Tensor]:
    layout = _layout(index, experts.down)
    y_ND, z = _forward(x_TD, weight_N, layout, experts=experts, keep_NF=keep_NF)
    return y_ND, layout.compact(z) if keep_z else z.new_empty(0, z.shape[1])


def _traced_backward(
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
    layout = _layout(index, experts.down)
    return _backward(
        dy_ND,
        x_TD,
        weight_N,
        layout=layout,
        experts=experts,
        keep_NF=keep_NF,
        z=layout.spread(z),
        wanted=wanted,
    )


ops.register("cpu", forward=_traced_forward, backward=_traced_backward)


def grouped_mlp(
    x_TD: Tensor, weight_N: Tensor, index: RowIndex, *, experts: StackedMLP, keep_NF: Tensor | None = None
) -> Tensor:
    """`reference.grouped_mlp` with its own backward; same arguments, same result up to the order of sums.

    Example:
        >>> index = RowIndex(torch.tensor([0]), torch.tensor([1]), torch.tensor([[0]]), 1, True)
        >>> experts = StackedMLP(up=torch.ones(1, 1, 1), down=torch.ones(1, 1, 1), activation="relu")
        >>> grouped_mlp(torch.tensor([[3.0]]), torch.tensor([0.5]), index, experts=experts).tolist()
        [[1.5]]
    """
    if is_traced(x_TD):
        return ops.call("cpu", x_TD, weight_N, index=index, experts=experts, keep_NF=keep_NF)
    up, down, up_bias, down_bias, activation = experts
    result: Tensor = _GroupedMLP.apply(  # type: ignore[no-untyped-call]  # torch leaves it untyped
        x_TD, weight_N, up, down, up_bias, down_bias, keep_NF, index, activation
    )
    return result
