"""Losses of a layer's parameters: functions of (router, experts). They do not see any token.

Example:
    >>> sorted(PARAMETER_LOSSES)
    ['l1', 'l2', 'orthogonality', 'router_orthogonality']
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mixtura.errors import UserError


def _sum(values: list[Tensor]) -> Tensor:
    return torch.stack(values).sum() if values else torch.zeros(())


def l1(router: nn.Module, _: nn.Module) -> Tensor:
    """The sum of the router's absolute parameters: unimportant inputs drop out of the choice.

    Source: Peralta and Soto 2014 (embedded feature selection in mixtures of experts), the gate's penalty.

    Example:
        >>> l1(nn.Linear(2, 1, bias=False).requires_grad_(False), nn.Identity()).ndim
        0
    """
    return _sum([p.float().abs().sum() for p in router.parameters()])


def l2(router: nn.Module, _: nn.Module) -> Tensor:
    """The sum of the router's squared parameters: a coefficient c pulls like plain SGD's weight decay of 2 c.

    Unlike AdamW's decay it acts through the gradient, and so is scaled with it.

    Example:
        >>> gate = nn.Linear(2, 1, bias=False)
        >>> l2(gate, nn.Identity()).item() == gate.weight.square().sum().item()
        True
    """
    return _sum([p.float().square().sum() for p in router.parameters()])


def router_orthogonality(router: nn.Module, _: nn.Module) -> Tensor:
    """Mean over pairs of experts of the squared cosine between their rows of the router: 0 to 1 (parallel).

    With more experts than dimensions it cannot be 0. Cost: E^2 D multiply-adds, little beside the router's own T E D.

    Source: Baidu 2025 (ERNIE 4.5 technical report, router orthogonalization loss), which sums over all ordered pairs:
    its coefficient c is c * E * (E - 1) here.

    Raises:
        UserError: a router that is no single matrix.

    Example:
        >>> gate = nn.Linear(2, 2, bias=False)
        >>> _ = nn.init.eye_(gate.weight)
        >>> router_orthogonality(gate, nn.Identity()).item()
        0.0
    """
    weight = getattr(router, "weight", None)
    if not isinstance(weight, Tensor):
        raise UserError(
            "expected a router with one weight matrix for the loss 'router_orthogonality', got a "
            f"{type(router).__name__} without; leave that loss out"
        )
    return _mean_squared_cosine(_gram(weight))


def orthogonality(_: nn.Module, experts: nn.Module) -> Tensor:
    """Mean over pairs of experts of the squared cosine between their weights: 0 (orthogonal) to 1 (copies).

    It keeps experts from becoming copies of one another, above all after upcycling, where they start as copies.

    Cost: E^2 P multiply-adds forward and twice that backward, with P the parameters of one expert: E^2 / (T K) of what
    the experts themselves compute. Stacked weights in fp32 are read in place, others are copied once. With experts
    spread over machines it sees those of this rank.

    Source: Liu et al. 2023 ("Diversifying the Mixture-of-Experts Representation"), there by projecting gradients; here
    as a penalty on the Gram matrix, as Bansal et al. 2018 use for the rows of a layer.

    Raises:
        UserError: experts whose parameters differ in shape.

    Example:
        >>> import mixtura as mx
        >>> same = mx.ModuleExperts([nn.Linear(2, 2)] * 3)
        >>> round(orthogonality(nn.Identity(), same).item(), 6)
        1.0
    """
    return _mean_squared_cosine(_sum_grams(experts))


def _sum_grams(experts: nn.Module) -> Tensor:
    """Inner products of all pairs of experts over all their parameters: float32 (E, E)."""
    if not isinstance(experts, nn.ModuleList):
        return torch.stack([_gram(stacked) for stacked in experts.parameters()]).sum(0)
    parts = [list(expert.parameters()) for expert in experts]
    shapes = [[p.shape for p in part] for part in parts]
    if any(other != shapes[0] for other in shapes) or not shapes[0]:
        raise UserError(
            "expected experts with parameters of the same shapes for the loss 'orthogonality', got several kinds; "
            "leave that loss out"
        )
    return torch.stack([_gram(torch.stack(same)) for same in zip(*parts, strict=True)]).sum(0)


def _gram(stacked: Tensor) -> Tensor:
    rows = stacked.flatten(1).float()
    return rows @ rows.T


def _mean_squared_cosine(gram_EE: Tensor) -> Tensor:
    """Of inner products. No root is taken, so that rows of zeros have a gradient of zero and not of NaN."""
    E = gram_EE.shape[0]
    norm_E = gram_EE.diagonal()
    cosine_EE = gram_EE.square() / (norm_E.unsqueeze(0) * norm_E.unsqueeze(1) + 1e-20)
    return (cosine_EE.sum() - cosine_EE.diagonal().sum()) / max(E * (E - 1), 1)


PARAMETER_LOSSES: dict[str, Callable[[nn.Module, nn.Module], Tensor]] = {
    "l1": l1,
    "l2": l2,
    "orthogonality": orthogonality,
    "router_orthogonality": router_orthogonality,
}
