"""How large a model is: parameters in total, and those that one token meets."""

from fractions import Fraction
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
    shares: dict[nn.Parameter, Fraction] = {}
    _spread(model, Fraction(1), shares)
    idle = sum(p.numel() * (1 - share) for p, share in shares.items())
    total = sum(p.numel() for p in shares)
    return ParameterCount(total=total, active=total - int(idle))


def _spread(module: nn.Module, share: Fraction, shares: dict[nn.Parameter, Fraction]) -> None:
    """The share of each parameter that a token meets; the largest where a parameter is used in several places."""
    for parameter in module.parameters(recurse=False):
        shares[parameter] = max(share, shares.get(parameter, share))
    for child in module.children():
        chosen = Fraction(1)
        if isinstance(module, MoE) and child is module.experts:
            chosen = Fraction(module.router.k, module.router.num_experts)
        _spread(child, share * chosen, shares)
