"""The truth: a loop over experts in plain differentiable torch, which every kernel is compared with."""

import torch
from torch import Tensor

from mixtura.kernels.activations import ACTIVATIONS
from mixtura.kernels.rows import RowIndex, gather_rows


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
    """Every expert's MLP on its own rows, times the row's weight: y_n = weight_n * MLP_e(x_token(n)).

    Shapes: x_TD (T, D), weight_N (N,), up (E, F, D) or (E, 2F, D) when gated, down (E, D, F), up_bias (E, F or 2F),
    down_bias (E, D); returns (N, D) in the dtype of `x_TD`.

    Example:
        >>> index = RowIndex(torch.tensor([0]), torch.tensor([1]), torch.tensor([[0]]), 1, True)
        >>> one = torch.ones(1, 1, 1)
        >>> grouped_mlp(torch.tensor([[3.0]]), torch.tensor([0.5]), index, up=one, down=one, activation="relu").tolist()
        [[1.5]]
    """
    rows = gather_rows(x_TD, index).split(index.counts_E.tolist())
    outputs = []
    for e, x in enumerate(rows):
        z = torch.nn.functional.linear(x, up[e], None if up_bias is None else up_bias[e])
        a = ACTIVATIONS[activation].forward(z)
        outputs.append(torch.nn.functional.linear(a, down[e], None if down_bias is None else down_bias[e]))
    return torch.cat(outputs) * weight_N.to(x_TD.dtype).unsqueeze(-1)
