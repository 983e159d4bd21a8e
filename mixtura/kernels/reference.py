"""The truth: a loop over experts in plain differentiable torch, which every kernel is compared with."""

import torch
from torch import Tensor

from mixtura.kernels.activations import ACTIVATIONS, StackedMLP
from mixtura.kernels.rows import RowIndex, gather_rows


def grouped_mlp(
    x_TD: Tensor, weight_N: Tensor, index: RowIndex, *, experts: StackedMLP, keep_NF: Tensor | None = None
) -> Tensor:
    """Every expert's MLP on its own rows, times the row's weight: y_n = weight_n * MLP_e(x_token(n)).

    Args:
        x_TD: the tokens, (T, D).
        weight_N: the weight of each row, (N,).
        index: which token each row comes from.
        experts: the matrices and the activation.
        keep_NF: multiplied onto the activations, (N, F): dropout inside the experts; None: nothing is dropped.

    Returns:
        (N, D) in the dtype of `x_TD`; the tail behind the experts' rows is zeros.

    Example:
        >>> index = RowIndex(torch.tensor([0]), torch.tensor([1]), torch.tensor([[0]]), 1, True)
        >>> experts = StackedMLP(up=torch.ones(1, 1, 1), down=torch.ones(1, 1, 1), activation="relu")
        >>> grouped_mlp(torch.tensor([[3.0]]), torch.tensor([0.5]), index, experts=experts).tolist()
        [[1.5]]
    """
    up, down, up_bias, down_bias, activation = experts
    parts = index.parts()
    *rows, tail = gather_rows(x_TD, index).split(parts)
    *weights, _ = weight_N.to(x_TD.dtype).unsqueeze(-1).split(parts)
    *keeps, _ = [None] * len(parts) if keep_NF is None else keep_NF.split(parts)
    outputs = []
    for e, (x, weight, keep) in enumerate(zip(rows, weights, keeps, strict=True)):
        z = torch.nn.functional.linear(x, up[e], None if up_bias is None else up_bias[e])
        a = ACTIVATIONS[activation].forward(z)
        a = a if keep is None else a * keep
        outputs.append(weight * torch.nn.functional.linear(a, down[e], None if down_bias is None else down_bias[e]))
    return torch.cat([*outputs, tail.new_zeros(tail.shape[0], down.shape[1])])
