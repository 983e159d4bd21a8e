"""What a stack of MLPs consists of: its matrices, and its activation with the derivative that a custom backward needs.

A gated activation takes 2F pre-activation columns (gate half first, then up) and gives F.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

_aten = torch.ops.aten


class Activation(NamedTuple):
    """One activation: forward z -> a, backward (da, z) -> (a, dz), and whether z has a gate half.

    `backward` recomputes a from z, since a is never kept between the passes.

    Example:
        >>> ACTIVATIONS["relu"].forward(torch.tensor([-1.0, 2.0])).tolist()
        [0.0, 2.0]
    """

    forward: Callable[[Tensor], Tensor]
    backward: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    gated: bool


def _relu_grad(grad: Tensor, z: Tensor) -> Tensor:
    result: Tensor = _aten.threshold_backward(grad, z, 0)
    return result


def _plain(forward: Callable[[Tensor], Tensor], grad: Callable[[Tensor, Tensor], Tensor]) -> Activation:
    return Activation(forward, lambda da, z: (forward(z), grad(da, z)), gated=False)


def _gated(forward: Callable[[Tensor], Tensor], grad: Callable[[Tensor, Tensor], Tensor]) -> Activation:
    def gate_times_up(z: Tensor) -> Tensor:
        gate, up = z.chunk(2, dim=-1)
        return forward(gate) * up

    def backward(da: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = z.chunk(2, dim=-1)
        activated = forward(gate)
        dz = torch.empty_like(z)
        dgate, dup = dz.chunk(2, dim=-1)
        dgate.copy_(grad(da * up, gate))
        torch.mul(da, activated, out=dup)
        return activated * up, dz

    return Activation(gate_times_up, backward, gated=True)


SWIGLU_LIMIT, SWIGLU_SLOPE = 7.0, 1.702  # of "clamped_swiglu", as gpt-oss has them


def _clamped(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The gate's half clamped above, the other half clamped on both sides plus 1, and the sigmoid between them."""
    gate, up = z.chunk(2, dim=-1)
    gate = gate.clamp(max=SWIGLU_LIMIT)
    return gate, up.clamp(-SWIGLU_LIMIT, SWIGLU_LIMIT) + 1, torch.sigmoid(gate * SWIGLU_SLOPE)


def _clamped_swiglu(z: Tensor) -> Tensor:
    gate, up, sigmoid = _clamped(z)
    return up * (gate * sigmoid)


def _clamped_swiglu_backward(da: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    gate, up, sigmoid = _clamped(z)
    glu = gate * sigmoid
    dgate = da * up * (sigmoid + SWIGLU_SLOPE * glu * (1 - sigmoid))
    raw_gate, raw_up = z.chunk(2, dim=-1)
    # Behind a clamp nothing moves; on its edge torch's clamp lets the gradient pass.
    dz = torch.cat([dgate * (raw_gate <= SWIGLU_LIMIT), da * glu * (raw_up.abs() <= SWIGLU_LIMIT)], dim=-1)
    return up * glu, dz


_gelu = torch.nn.functional.gelu
_gelu_tanh = partial(_gelu, approximate="tanh")
_gelu_tanh_backward = partial(_aten.gelu_backward, approximate="tanh")
_silu = torch.nn.functional.silu

ACTIVATIONS: dict[str, Activation] = {
    "relu": _plain(torch.relu, _relu_grad),
    "gelu": _plain(_gelu, _aten.gelu_backward),
    "gelu_tanh": _plain(_gelu_tanh, _gelu_tanh_backward),
    "silu": _plain(_silu, _aten.silu_backward),
    "swiglu": _gated(_silu, _aten.silu_backward),
    "geglu": _gated(_gelu, _aten.gelu_backward),
    "geglu_tanh": _gated(_gelu_tanh, _gelu_tanh_backward),
    "clamped_swiglu": Activation(_clamped_swiglu, _clamped_swiglu_backward, gated=True),
}


def weave(columns: Tensor) -> Tensor:
    """Neighbours of halves, g0 u0 g1 u1 ... of g0 g1 ... u0 u1 ...: (..., 2F), a copy.

    Example:
        >>> weave(torch.tensor([1, 2, 10, 20])).tolist()
        [1, 10, 2, 20]
    """
    woven: Tensor = columns.unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2)
    return woven


def unweave(columns: Tensor) -> Tensor:
    """The inverse of `weave`: the gate's columns first: (..., 2F), a copy.

    Example:
        >>> unweave(torch.tensor([1, 10, 2, 20])).tolist()
        [1, 2, 10, 20]
    """
    halves: Tensor = columns.unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2)
    return halves


def _woven(activation: Activation) -> Activation:
    def backward(da: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        a, dz = activation.backward(da, unweave(z))
        return a, weave(dz)

    return Activation(lambda z: activation.forward(unweave(z)), backward, gated=True)


# For matrices whose gate and up rows alternate, as gpt-oss has them: what runs on a CPU knows these names.
WOVEN_PREFIX = "woven_"
WOVEN: dict[str, Activation] = {
    WOVEN_PREFIX + name: _woven(activation) for name, activation in ACTIVATIONS.items() if activation.gated
}


def find(name: str) -> Activation:
    """The activation of a name in `ACTIVATIONS` or `WOVEN`.

    Example:
        >>> find("woven_swiglu").gated
        True
    """
    return ACTIVATIONS.get(name) or WOVEN[name]


class StackedMLP(NamedTuple):
    """The parameters of E two-layer MLPs, stacked by expert: what every kernel of `GroupedMLP` takes.

    Attributes:
        up: (E, F, D); gated: (E, 2F, D), the gate's rows first.
        down: (E, D, F).
        up_bias: (E, F or 2F), or None.
        down_bias: (E, D), or None.
        activation: a name in `ACTIVATIONS`.

    Example:
        >>> one = torch.ones(1, 1, 1)
        >>> StackedMLP(up=one, down=one, activation="relu").up_bias is None
        True
    """

    up: Tensor
    down: Tensor
    up_bias: Tensor | None = None
    down_bias: Tensor | None = None
    activation: str = "relu"
