"""How large a model is: parameters in total, and those that one token meets."""

from typing import NamedTuple

from torch import nn

from mixtura.layer import MoE


class ParameterCount(NamedTuple):
    """Parameters of a model.

    Attributes:
        total: all of them, shared ones once.
        active: without the experts that a token does not choose: of E experts only K are counted.

    Example:
        >>> ParameterCount(total=10, active=4).active
        4
    """

    total: int
    active: int


def count_parameters(model: nn.Module) -> ParameterCount:
    """Count parameters in total and active per token.

    Example:
        >>> import mixtura as mx
        >>> config = mx.MoEConfig(dim=4, hidden=8, num_experts=4, k=1, router="switch", activation="relu")
        >>> count_parameters(config.build())
        ParameterCount(total=272, active=80)
    """
    total = sum(p.numel() for p in model.parameters())
    idle = 0
    for layer in model.modules():
        if isinstance(layer, MoE):
            experts = sum(p.numel() for p in layer.experts.parameters())
            idle += experts * (layer.router.num_experts - layer.router.k) // layer.router.num_experts
    return ParameterCount(total=total, active=total - idle)
