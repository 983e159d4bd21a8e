"""Sparse to dense: a mixture's experts averaged, put side by side, or distilled into one MLP."""

from collections.abc import Iterable
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from mixtura.errors import UserError
from mixtura.experts import MLP
from mixtura.kernels.activations import ACTIVATIONS, StackedMLP
from mixtura.layer import MoE
from mixtura.surgery.batches import evaluating, inputs_of
from mixtura.surgery.initial import map_tensors
from mixtura.surgery.layers import grouped, mixtures, scale_output, stack_of, weight_sum

Method = Literal["average", "concat", "distil"]


def to_dense(
    model: nn.Module,
    *,
    method: Method = "average",
    data: Iterable[Any] | None = None,
    steps: int = 200,
    lr: float = 1e-3,
) -> nn.Module:
    """Replace every mixture of a model by one dense `mixtura.MLP`, in place.

    "average": the mean of the experts' weights, times the sum of the router's weights; of a mixture that was only
    upcycled that is the dense model again. "concat": all experts side by side, E*F hidden units, each expert weighted
    alike: what the mixture computes when all are chosen by equal weights. "distil": the average, then trained to give
    each mixture's own output on what it is given (Adam, mean squared error, full batches). A shared expert is not
    carried over.

    Args:
        model: with mixtures of `GroupedMLP` experts.
        method: see above.
        data: for "distil", batches that the model is called with, see `moefy`.
        steps: for "distil".
        lr: for "distil".

    Returns:
        The model; where it was itself a mixture, the MLP.

    Raises:
        UserError: no mixture, one with a shared expert, an unknown method, no data to distil on.

    Example:
        >>> import mixtura as mx
        >>> dense = mx.MLP(dim=4, hidden=8)
        >>> x = torch.randn(5, 4)
        >>> expected = dense(x)
        >>> torch.allclose(to_dense(mx.moefy(dense))(x), expected, atol=1e-6)
        True
    """
    if method not in get_args(Method):
        raise UserError(f"expected a method among {', '.join(get_args(Method))}, got {method!r}")
    layers = mixtures(model)
    if shared := [name for name, layer in layers.items() if layer.shared is not None]:
        raise UserError(f"expected mixtures without shared experts, got some in {', '.join(shared)}")
    inputs: dict[str, Tensor] = {}
    if method == "distil":
        if data is None:
            raise UserError('expected data= with method="distil", got None; give some inputs of the model')
        inputs = inputs_of(model, list(layers), data)
    for name, layer in layers.items():
        stack = scale_output(stack_of(grouped(layer)), weight_sum(layer.router))
        mlp = mlp_of(_side_by_side(stack) if method == "concat" else average(stack)).train(model.training)
        if method == "distil":
            _distil(mlp, layer, inputs[name], steps=steps, lr=lr)
        if not name:
            return mlp
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, mlp)
    return model


def average(stack: StackedMLP, weight_E: Tensor | None = None) -> StackedMLP:
    """One expert whose weights are the mean of all, weighted if wished: a stack of one.

    Example:
        >>> up = torch.tensor([1.0, 4.0]).view(2, 1, 1)
        >>> average(StackedMLP(up=up, down=up), torch.tensor([2.0, 1.0])).up.item()
        2.0
    """
    E = stack.down.shape[0]
    share_E = torch.full((E,), 1 / E) if weight_E is None else weight_E / weight_E.sum()

    def mean(_: str, tensor: Tensor) -> Tensor:
        result: Tensor = torch.tensordot(share_E.to(tensor), tensor, dims=1)
        return result.unsqueeze(0)

    return map_tensors(stack, mean)


def _side_by_side(stack: StackedMLP) -> StackedMLP:
    """All experts in one, each with weight 1 / E: a stack of one with E*F hidden units."""
    E = stack.down.shape[0]
    halves = 1 + ACTIVATIONS[stack.activation].gated

    def rows(tensor: Tensor) -> Tensor:
        return torch.cat([half.flatten(0, 1) for half in tensor.chunk(halves, dim=1)]).unsqueeze(0)

    return StackedMLP(
        up=rows(stack.up),
        down=stack.down.permute(1, 0, 2).flatten(1).unsqueeze(0) / E,
        up_bias=None if stack.up_bias is None else rows(stack.up_bias),
        down_bias=None if stack.down_bias is None else stack.down_bias.mean(0, keepdim=True),
        activation=stack.activation,
    )


@torch.no_grad()
def mlp_of(stack: StackedMLP) -> MLP:
    """The dense module of a stack of one.

    Example:
        >>> one = torch.ones(1, 1, 1)
        >>> mlp_of(StackedMLP(up=one, down=one, activation="relu"))(torch.tensor([[2.0]])).item()
        2.0
    """
    _, dim, hidden = stack.down.shape
    mlp = MLP(dim=dim, hidden=hidden, activation=stack.activation, bias=stack.up_bias is not None).to(stack.down)
    mlp.up_proj.weight.copy_(stack.up[0])
    mlp.down_proj.weight.copy_(stack.down[0])
    if stack.up_bias is not None and stack.down_bias is not None:
        mlp.up_proj.bias.copy_(stack.up_bias[0])
        mlp.down_proj.bias.copy_(stack.down_bias[0])
    return mlp


def _distil(mlp: MLP, layer: MoE, x_TD: Tensor, *, steps: int, lr: float) -> None:
    with evaluating(layer):
        wanted_TD = layer(x_TD)
    optimizer = torch.optim.Adam(mlp.parameters(), lr=lr)
    with torch.enable_grad():
        for _ in range(steps):
            optimizer.zero_grad()
            nn.functional.mse_loss(mlp(x_TD), wanted_TD).backward()
            optimizer.step()
    optimizer.zero_grad()
