"""Grouped MLP for CPUs: one autograd function that reads rows through indices and keeps only the pre-activation.

Kept for the backward pass: the layer's input x, the pre-activation z, the row weights and indices. The activation is
computed again; the weight's gradient is <dY W_down, a>, taken on the hidden side, so the expert's output is never kept.

The products come in two layouts. `_Compact` calls one product per expert on its slice. `_Padded` gives every expert
the same number of rows and calls one batched product: about 45 us of overhead less per expert and product, for the
price of the padding rows. `_choose` weighs one against the other for the counts at hand.
"""

from itertools import accumulate
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mixtura.kernels.activations import ACTIVATIONS
from mixtura.kernels.rows import RowIndex, sum_rows

# Multiply-adds that take as long as the overhead of one product call; measured, see docs/log.md, 2026-11-22.
_CALL_OVERHEAD_MACS = 3_000_000
# A batched product's row count is rounded up to this, so that libraries that build a kernel for each shape reuse it.
_ROW_MULTIPLE = 16


class _Layout(Protocol):
    def take(self, x_TD: Tensor) -> Tensor: ...
    def spread(self, rows: Tensor) -> Tensor: ...
    def compact(self, rows: Tensor) -> Tensor: ...
    def product(self, rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor: ...
    def weight_grad(self, left: Tensor, right: Tensor) -> Tensor: ...
    def bias_rows(self, bias: Tensor) -> Tensor: ...
    def bias_grad(self, rows: Tensor) -> Tensor: ...
    def sum_to_tokens(self, rows: Tensor) -> Tensor: ...


class _Compact:
    """Rows lie one expert after another without gaps: (N, *)."""

    def __init__(self, index: RowIndex, counts: list[int]) -> None:
        self.index = index
        self.counts = counts

    def take(self, x_TD: Tensor) -> Tensor:
        return x_TD.index_select(0, self.index.token_N)

    def spread(self, rows: Tensor) -> Tensor:
        return rows

    def compact(self, rows: Tensor) -> Tensor:
        return rows

    def product(self, rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        out = rows.new_empty(rows.shape[0], weight.shape[2])
        parts = zip(rows.split(self.counts), weight.unbind(0), out.split(self.counts), strict=True)
        for e, (a, b, c) in enumerate(parts):
            if not a.shape[0]:
                continue
            if bias is None:
                torch.mm(a, b, out=c)
            else:
                torch.addmm(bias[e], a, b, out=c)
        return out

    def weight_grad(self, left: Tensor, right: Tensor) -> Tensor:
        out = left.new_empty(len(self.counts), left.shape[1], right.shape[1])
        for a, b, c in zip(left.split(self.counts), right.split(self.counts), out.unbind(0), strict=True):
            if a.shape[0]:
                torch.mm(a.t(), b, out=c)
            else:
                c.zero_()
        return out

    def bias_rows(self, bias: Tensor) -> Tensor:
        return bias.repeat_interleave(self.index.counts_E, dim=0, output_size=self.index.token_N.shape[0])

    def bias_grad(self, rows: Tensor) -> Tensor:
        return torch.stack([part.sum(0) for part in rows.split(self.counts)])

    def sum_to_tokens(self, rows: Tensor) -> Tensor:
        return sum_rows(rows, self.index)


class _Padded:
    """Every expert has C rows: (E * C, *). Rows past its count hold zeros wherever a sum over rows could see them."""

    def __init__(self, index: RowIndex, counts: list[int], capacity: int) -> None:
        self.index = index
        E, N = len(counts), index.token_N.shape[0]
        shift_E = [e * capacity - start for e, start in enumerate(accumulate([0, *counts[:-1]]))]
        shift_N = torch.tensor(shift_E, device=index.token_N.device).repeat_interleave(index.counts_E, output_size=N)
        self.place_N = torch.arange(N, device=index.token_N.device) + shift_N
        self.token = index.token_N.new_zeros(E * capacity).index_copy_(0, self.place_N, index.token_N)
        is_padding = torch.ones(E * capacity, dtype=torch.bool, device=self.token.device)
        self.padding = is_padding.index_fill_(0, self.place_N, 0).nonzero().view(-1)
        self.shape = (E, capacity, -1)

    def take(self, x_TD: Tensor) -> Tensor:
        return x_TD.index_select(0, self.token).index_fill_(0, self.padding, 0)

    def spread(self, rows: Tensor) -> Tensor:
        return rows.new_zeros(self.token.shape[0], *rows.shape[1:]).index_copy_(0, self.place_N, rows)

    def compact(self, rows: Tensor) -> Tensor:
        return rows.index_select(0, self.place_N)

    def product(self, rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if bias is None:
            return torch.bmm(rows.view(self.shape), weight).flatten(0, 1)
        return torch.baddbmm(bias.unsqueeze(1), rows.view(self.shape), weight).flatten(0, 1)

    def weight_grad(self, left: Tensor, right: Tensor) -> Tensor:
        return torch.bmm(left.view(self.shape).transpose(1, 2), right.view(self.shape))

    def bias_rows(self, bias: Tensor) -> Tensor:
        return bias.repeat_interleave(self.shape[1], dim=0)

    def bias_grad(self, rows: Tensor) -> Tensor:
        return rows.view(self.shape).sum(1)

    def sum_to_tokens(self, rows: Tensor) -> Tensor:
        slot_TK = self.index.slot_TK
        if slot_TK is None:
            return sum_rows(self.compact(rows), self.index)
        if slot_TK.numel() == 0 or self.place_N.numel() == 0:
            return rows.new_zeros(self.index.num_tokens, rows.shape[1])
        placed_TK = self.place_N[slot_TK.clamp(min=0)]
        return sum_rows(rows, self.index, placed_TK if self.index.dropless else placed_TK.where(slot_TK >= 0, -1))


def _choose(index: RowIndex, *, macs_per_row: int) -> _Layout:
    counts: list[int] = index.counts_E.tolist()
    E, N = len(counts), sum(counts)
    capacity = -(-max(counts, default=0) // _ROW_MULTIPLE) * _ROW_MULTIPLE
    padding_macs = (E * capacity - N) * macs_per_row
    if N and padding_macs <= E * _CALL_OVERHEAD_MACS and E * capacity <= 4 * N:
        return _Padded(index, counts, capacity)
    return _Compact(index, counts)


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
        index: RowIndex,
        activation: str,
    ) -> Tensor:
        layout = _choose(index, macs_per_row=down.shape[1] * down.shape[2])
        # The bias enters before z is rounded: in bf16 a second rounding would flip the sign of many a small z.
        z = layout.product(layout.take(x_TD), up.transpose(1, 2), up_bias)
        w = layout.spread(weight_N).to(x_TD.dtype).unsqueeze(-1)
        a = ACTIVATIONS[activation].forward(z)
        y = layout.product(a.mul_(w), down.transpose(1, 2))
        if down_bias is not None:
            y += layout.bias_rows(down_bias) * w
        ctx.save_for_backward(x_TD, weight_N, up, down, up_bias, down_bias, z)
        ctx.layout, ctx.activation = layout, activation
        return layout.compact(y)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_ND: Tensor) -> tuple[Tensor | None, ...]:
        x_TD, weight_N, up, down, _, down_bias, z = ctx.saved_tensors
        layout: _Layout = ctx.layout
        wants_x, wants_weight, wants_up, wants_down, wants_up_bias, wants_down_bias = ctx.needs_input_grad[:6]
        w = layout.spread(weight_N).to(x_TD.dtype).unsqueeze(-1)
        dy = layout.spread(dy_ND)
        da = layout.product(dy, down)
        a, dz = ACTIVATIONS[ctx.activation].backward(da, z)
        dz.mul_(w)
        dweight_N = dx_TD = None
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
            layout.weight_grad(dy, a.mul_(w)) if wants_down else None,
            layout.bias_grad(dz) if wants_up_bias else None,
            layout.bias_grad(dy * w) if wants_down_bias else None,
            None,
            None,
        )


def grouped_mlp(
    x_TD: Tensor,
    weight_N: Tensor,
    index: RowIndex,
    *,
    up: Tensor,
    down: Tensor,
    up_bias: Tensor | None = None,
    down_bias: Tensor | None = None,
    activation: str,
) -> Tensor:
    """`reference.grouped_mlp` with its own backward; same arguments, same result up to the order of sums.

    Example:
        >>> index = RowIndex(torch.tensor([0]), torch.tensor([1]), torch.tensor([[0]]), 1, True)
        >>> one = torch.ones(1, 1, 1)
        >>> grouped_mlp(torch.tensor([[3.0]]), torch.tensor([0.5]), index, up=one, down=one, activation="relu").tolist()
        [[1.5]]
    """
    result: Tensor = _GroupedMLP.apply(  # type: ignore[no-untyped-call]  # torch leaves it untyped
        x_TD, weight_N, up, down, up_bias, down_bias, index, activation
    )
    return result
