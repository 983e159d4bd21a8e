"""Grouped MLP for CPUs: one autograd function that reads rows through indices and keeps only the pre-activation.

Kept for the backward pass: the layer's input x, the pre-activation z, the row weights and indices. The activation is
computed again; the weight's gradient is <dY W_down, a>, taken on the hidden side, so the expert's output is never kept.
Each expert's weight gradient is written once into one buffer. `layout` decides how rows meet products.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mixtura.kernels.activations import ACTIVATIONS, StackedMLP
from mixtura.kernels.layout import Layout
from mixtura.kernels.rows import RowIndex


class _GroupedMLP(torch.autograd.Function):
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
        layout = Layout(index, macs_per_row=down.shape[1] * down.shape[2])
        # The bias enters before z is rounded: in bf16 a second rounding would flip the sign of many a small z.
        z = layout.product(layout.take(x_TD), up, transpose=True, bias=up_bias)
        w = layout.spread(weight_N).to(x_TD.dtype).unsqueeze(-1)
        a = ACTIVATIONS[activation].forward(z)
        if keep_NF is not None:
            a.mul_(layout.spread(keep_NF))
        y = layout.product(a.mul_(w), down, transpose=True)
        if down_bias is not None:
            y += layout.bias_rows(down_bias) * w
        ctx.save_for_backward(x_TD, weight_N, up, down, up_bias, down_bias, keep_NF, z)
        ctx.layout, ctx.activation = layout, activation
        return layout.compact(y)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_ND: Tensor) -> tuple[Tensor | None, ...]:
        x_TD, weight_N, up, down, _, down_bias, keep_NF, z = ctx.saved_tensors
        layout: Layout = ctx.layout
        wants_x, wants_weight, wants_up, wants_down, wants_up_bias, wants_down_bias = ctx.needs_input_grad[:6]
        w = layout.spread(weight_N).to(x_TD.dtype).unsqueeze(-1)
        dy = layout.spread(dy_ND)
        keep = None if keep_NF is None else layout.spread(keep_NF)
        # Frozen parts are not paid for: what only their gradients need stays empty.
        da = a = dz = z.new_empty(0)
        dweight_N = dx_TD = None
        if wants_x or wants_up or wants_up_bias or wants_weight:
            da = layout.product(dy, down)
            if keep is not None:
                da.mul_(keep)
        if wants_x or wants_up or wants_up_bias:
            a, dz = ACTIVATIONS[ctx.activation].backward(da, z)
            dz.mul_(w)
        elif wants_weight or wants_down:
            a = ACTIVATIONS[ctx.activation].forward(z)
        if wants_weight:
            dweight = torch.linalg.vecdot(da, a)
            if down_bias is not None:
                dweight += torch.linalg.vecdot(dy, layout.bias_rows(down_bias))
            dweight_N = layout.compact(dweight).to(weight_N.dtype)
        if wants_x:
            dx_TD = layout.sum_to_tokens(layout.product(dz, up))
        return (
            dx_TD,
            dweight_N,
            layout.weight_grad(dz, layout.take(x_TD)) if wants_up else None,
            layout.weight_grad(dy, a.mul_(w if keep is None else keep * w)) if wants_down else None,
            layout.bias_grad(dz) if wants_up_bias else None,
            layout.bias_grad(dy * w) if wants_down_bias else None,
            None,
            None,
            None,
        )


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
    up, down, up_bias, down_bias, activation = experts
    result: Tensor = _GroupedMLP.apply(  # type: ignore[no-untyped-call]  # torch leaves it untyped
        x_TD, weight_N, up, down, up_bias, down_bias, keep_NF, index, activation
    )
    return result
