"""The truth: a loop over experts in plain differentiable torch, which every kernel is compared with."""

import torch
from torch import Tensor

from mixtura.kernels.activations import ACTIVATIONS, StackedMLP
from mixtura.kernels.rows import RowIndex, gather_rows


def grouped_mlp(x_TD: Tensor, weight_N: Tensor, index: RowIndex, *, experts: StackedMLP) -> Tensor:
    """Every expert's MLP on its own rows, times the row's weight: y_n = weight_n * MLP_e(x_token(n)).

    Shapes: x_TD (T, D), weight_N (N,), experts as `StackedMLP` says; returns (N, D) in the dtype of `x_TD`.

    Example:
        >>> index = RowIndex(torch.tensor([0]), torch.tensor([1]), torch.tensor([[0]]), 1, True)
        >>> experts = StackedMLP(up=torch.ones(1, 1, 1), down=torch.ones(1, 1, 1), activation="relu")
        >>> grouped_mlp(torch.tensor([[3.0]]), torch.tensor([0.5]), index, experts=experts).tolist()
        [[1.5]]
    """
    up, down, up_bias, down_bias, activation = experts
    rows = gather_rows(x_TD, index).split(index.counts_E.tolist())
    outputs = []
    for e, x in enumerate(rows):
        z = torch.nn.functional.linear(x, up[e], None if up_bias is None else up_bias[e])
        a = ACTIVATIONS[activation].forward(z)
        outputs.append(torch.nn.functional.linear(a, down[e], None if down_bias is None else down_bias[e]))
    return torch.cat(outputs) * weight_N.to(x_TD.dtype).unsqueeze(-1)
