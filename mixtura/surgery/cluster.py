"""Moefication: the hidden units of a dense MLP grouped into experts by which of them are active together."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mixtura.errors import UserError
from mixtura.kernels.activations import StackedMLP
from mixtura.routers.balanced import balanced_assignment
from mixtura.routers.base import Router
from mixtura.surgery.initial import cut
from mixtura.surgery.layers import scale_output, weight_sum
from mixtura.surgery.sites import hidden_units

# The router's logits start this close together: its order counts, and its weights are as good as equal.
_SPREAD = 1e-4


@dataclass(frozen=True)
class Cluster:
    """Each expert is a group of F / E hidden units that are active together; chosen ones add up without weights.

    With k = E the output is the dense one; with fewer only the chosen groups take part, those that a linear fit to
    their activity on the calibration data expects to be most active. The fit becomes the router's matrix, scaled so far
    down that the weights of the chosen are equal, and the outputs are multiplied by k over their sum.

    Source: Zhang et al. 2022 (MoEfication), section 3; there a small network chooses, and the groups come from the
    weights or the graph of co-activation.

    Attributes:
        iterations: rounds of balanced k-means.

    Raises:
        UserError: experts that do not divide F, a router without a matrix, no calibration data.

    Example:
        >>> Cluster(iterations=5).iterations
        5
    """

    iterations: int = 10
    needs_inputs: ClassVar[bool] = True

    @torch.no_grad()
    def experts(self, mlp: StackedMLP, router: Router, *, inputs_TD: Tensor | None) -> StackedMLP:
        """E groups of units, and the router's matrix fitted to their activity."""
        E, k, F = router.num_experts, router.k, mlp.down.shape[2]
        if inputs_TD is None:
            raise UserError('expected data= with init="cluster", got None; give some inputs of the model')
        if F % E:
            raise UserError(f"expected num_experts that divides the hidden width {F}, got {E}")
        if router.weight is None or router.weight.shape[0] != E:
            raise UserError(f"expected a router with one row of a matrix for each expert, got {type(router).__name__}")
        h_TF = hidden_units(mlp, inputs_TD).float()
        units_EF = group_units(h_TF, E, iterations=self.iterations)
        activity_TE = (h_TF.abs() * mlp.down[0].float().norm(dim=0))[:, units_EF].sum(-1)
        router.weight.copy_(_fit(inputs_TD.float(), activity_TE))
        stack = cut(mlp, units_EF)
        if stack.down_bias is not None:  # whole with any k experts
            stack = stack._replace(down_bias=stack.down_bias * (E / k))
        return scale_output(stack, k / weight_sum(router))


def group_units(h_TF: Tensor, groups: int, *, iterations: int = 10) -> Tensor:
    """Hidden units in groups of equal size, by balanced k-means on their activations: int64 (groups, F / groups).

    Each round assigns the units to the groups' mean directions, all groups alike in size, with the largest sum of
    cosines that an auction finds.

    Args:
        h_TF: activations of F units on T tokens.
        groups: a divisor of F.
        iterations: rounds.

    Example:
        >>> h_TF = torch.tensor([[1.0, 0.0, 1.0, 0.0], [0.0, 2.0, 0.0, 1.0]])
        >>> sorted(sorted(group) for group in group_units(h_TF, 2).tolist())
        [[0, 2], [1, 3]]
    """
    unit_FT = torch.nn.functional.normalize(h_TF.T, dim=1)
    mean_ET = unit_FT[_spread_out(unit_FT, groups)]
    group_F = unit_FT.new_zeros(unit_FT.shape[0], dtype=torch.long)
    for _ in range(iterations):
        before_F, group_F = group_F, balanced_assignment(unit_FT @ mean_ET.T, epsilon=0.01, rounds=256)
        sums_ET = torch.zeros_like(mean_ET).index_add_(0, group_F, unit_FT)
        mean_ET = torch.nn.functional.normalize(sums_ET, dim=1)
        if torch.equal(group_F, before_F):
            break
    return group_F.argsort(stable=True).view(groups, -1)


def _spread_out(unit_FT: Tensor, groups: int) -> list[int]:
    """Units to begin with: the first is the one most like the others, each next one is farthest from those before."""
    chosen = [int((unit_FT @ unit_FT.sum(0)).argmax())]
    nearest_F = unit_FT @ unit_FT[chosen[0]]
    while len(chosen) < groups:
        nearest_F[chosen] = torch.inf
        chosen.append(int(nearest_F.argmin()))
        nearest_F = torch.maximum(nearest_F, unit_FT @ unit_FT[chosen[-1]])
    return chosen


def _fit(x_TD: Tensor, activity_TE: Tensor) -> Tensor:
    """Ridge regression of the activity on the inputs, without an offset, which a router has not: (E, D), scaled."""
    T, D = x_TD.shape
    gram_DD = x_TD.T @ x_TD / T
    gram_DD += 1e-3 * gram_DD.diagonal().mean() * torch.eye(D, device=x_TD.device)
    weight_ED = torch.linalg.solve(gram_DD, x_TD.T @ (activity_TE / T)).T
    logits_TE = x_TD @ weight_ED.T
    result: Tensor = weight_ED * (_SPREAD / logits_TE.abs().max().clamp(min=torch.finfo(torch.float32).tiny))
    return result
