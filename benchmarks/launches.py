"""The launches of one call of the Triton kernels, on a real device or on the meta device, where nothing is computed."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mixtura.kernels.activations import ACTIVATIONS, StackedMLP
from mixtura.kernels.grouping import group, slots_of
from mixtura.kernels.ops import Wanted
from mixtura.kernels.rows import RowIndex
from mixtura.kernels.triton import passes
from mixtura.kernels.triton.combine import combine_launch
from mixtura.kernels.triton.launch import Launch
from mixtura.kernels.triton.router import route_backward_launch, route_launch


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes of one layer."""

    tokens: int
    dim: int
    hidden: int
    num_experts: int
    k: int

    @property
    def rows(self) -> int:
        """N."""
        return self.tokens * self.k

    def flops(self, *, gated: bool) -> int:
        """Floating-point operations of all products of a forward pass; a backward pass has twice as many."""
        return 2 * self.rows * self.dim * self.hidden * (3 if gated else 2)


@dataclass(frozen=True, kw_only=True)
class Operands:
    """What one call takes."""

    x_TD: Tensor
    logits_TE: Tensor
    weight_N: Tensor
    index: RowIndex
    experts: StackedMLP
    keep_NF: Tensor | None


def _index(shape: Shape, expert_TK: Tensor, *, slots: bool) -> RowIndex:
    if expert_TK.device.type == "meta":
        order_N, counts_E = expert_TK.new_empty(shape.rows), expert_TK.new_empty(shape.num_experts)
        slot_TK = torch.empty_like(expert_TK)
    else:
        order_N, counts_E = group(expert_TK.flatten(), num_experts=shape.num_experts)
        slot_TK = slots_of(order_N, counts_E, choices=shape.k, all_kept=True)
    return RowIndex(order_N // shape.k, counts_E, slot_TK if slots else None, shape.tokens, dropless=True)


def draw(
    shape: Shape,
    *,
    device: str,
    dtype: torch.dtype,
    activation: str = "swiglu",
    bias: bool = False,
    dropout: bool = False,
    slots: bool = True,
) -> Operands:
    """Random operands, with a fresh routing, so that the experts' counts change from call to call."""
    E, D, F = shape.num_experts, shape.dim, shape.hidden
    columns = 2 * F if ACTIVATIONS[activation].gated else F

    def random(*size: int, fan_in: int = 1, dtype: torch.dtype = dtype) -> Tensor:
        return torch.randn(size, device=device, dtype=dtype) * fan_in**-0.5

    logits_TE = random(shape.tokens, E, dtype=torch.float32)
    return Operands(
        x_TD=random(shape.tokens, D),
        logits_TE=logits_TE,
        weight_N=random(shape.rows, dtype=torch.float32).sigmoid(),
        index=_index(shape, logits_TE.topk(shape.k).indices, slots=slots),
        experts=StackedMLP(
            up=random(E, columns, D, fan_in=D),
            down=random(E, D, F, fan_in=F),
            up_bias=random(E, columns) if bias else None,
            down_bias=random(E, D) if bias else None,
            activation=activation,
        ),
        keep_NF=random(shape.rows, F).abs() if dropout else None,
    )


def call(operands: Operands, *, start: Callable[[Launch], None]) -> None:
    """Every launch of a layer's forward and backward pass, routing and combining included."""
    o, bias = operands, operands.experts.up_bias is not None
    k = o.weight_N.shape[0] // o.x_TD.shape[0]
    (probs_TE, weight_TK, expert_TK, _), launch = route_launch(o.logits_TE, k=k, over="chosen")
    start(launch)
    values = {"experts": o.experts, "keep_NF": o.keep_NF, "start": start}
    y_ND, z = passes.forward(o.x_TD, o.weight_N, o.index, keep_z=True, **values)
    start(combine_launch(y_ND, o.index)[1])
    wanted = Wanted(x=True, weight=True, up=True, down=True, up_bias=bias, down_bias=bias)
    passes.backward(y_ND, o.x_TD, o.weight_N, index=o.index, z=z, wanted=wanted, **values)
    chosen = {"probs_TE": probs_TE, "weight_TK": weight_TK, "expert_TK": expert_TK}
    start(route_backward_launch(probs_TE, weight_TK, over="chosen", **chosen)[1])
