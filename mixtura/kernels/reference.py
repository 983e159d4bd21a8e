"""The truth: a loop over experts in plain differentiable torch, which every kernel is compared with."""

from collections.abc import Callable

import torch
from torch import Tensor

from mixtura.kernels import ops
from mixtura.kernels.activations import StackedMLP, find
from mixtura.kernels.ops import Gradients, Passes, Wanted
from mixtura.kernels.rows import RowIndex, gather_rows, is_traced


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
    if is_traced(x_TD):
        return ops.call("reference", x_TD, weight_N, index=index, experts=experts, keep_NF=keep_NF)
    up, down, up_bias, down_bias, activation = experts
    parts = index.parts()
    *rows, tail = gather_rows(x_TD, index).split(parts)
    *weights, _ = weight_N.to(x_TD.dtype).unsqueeze(-1).split(parts)
    *keeps, _ = [None] * len(parts) if keep_NF is None else keep_NF.split(parts)
    outputs = []
    for e, (x, weight, keep) in enumerate(zip(rows, weights, keeps, strict=True)):
        z = torch.nn.functional.linear(x, up[e], None if up_bias is None else up_bias[e])
        a = find(activation).forward(z)
        a = a if keep is None else a * keep
        outputs.append(weight * torch.nn.functional.linear(a, down[e], None if down_bias is None else down_bias[e]))
    return torch.cat([*outputs, tail.new_zeros(tail.shape[0], down.shape[1])])


def passes_of(kernel: Callable[..., Tensor]) -> Passes:
    """Two passes made of any differentiable kernel: the second runs the first again and asks torch for its gradients.

    Example:
        >>> passes_of(grouped_mlp)._fields
        ('forward', 'backward')
    """

    def forward(
        x_TD: Tensor, weight_N: Tensor, index: RowIndex, *, experts: StackedMLP, keep_NF: Tensor | None, keep_z: bool
    ) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            y_ND = kernel(x_TD, weight_N, index, experts=experts, keep_NF=keep_NF)
            if not keep_z:
                return y_ND, y_ND.new_empty(0, experts.up.shape[1])
            # The backward pass below needs none; that of another kernel, chosen meanwhile, does.
            *rows, tail = gather_rows(x_TD, index).split(index.parts())
            biases = [None] * len(rows) if experts.up_bias is None else experts.up_bias.unbind()
            z = [torch.nn.functional.linear(*each) for each in zip(rows, experts.up, biases, strict=True)]
            return y_ND, torch.cat([*z, tail.new_zeros(tail.shape[0], experts.up.shape[1])])

    def backward(
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
        del z
        leaves = [
            leaf if leaf is None else leaf.detach().requires_grad_(want)
            for leaf, want in zip((x_TD, weight_N, *experts[:4]), wanted, strict=True)
        ]
        with torch.enable_grad():
            up, down, up_bias, down_bias = leaves[2:]
            assert up is not None
            assert down is not None
            again = StackedMLP(up, down, up_bias, down_bias, experts.activation)
            y_ND = kernel(leaves[0], leaves[1], index, experts=again, keep_NF=keep_NF)
        asked = [leaf for leaf in leaves if leaf is not None and leaf.requires_grad]
        found = iter(torch.autograd.grad(y_ND, asked, dy_ND, allow_unused=True, materialize_grads=True))
        return Gradients(*(next(found) if want else None for want in wanted))

    return Passes(forward, backward)


ops.register("reference", **passes_of(grouped_mlp)._asdict())
