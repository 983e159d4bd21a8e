"""How the experts' outputs become one in evaluation: beside their weighted sum, the highest gate alone, or a vote.

Training always takes the weighted sum, through which the gate learns.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from mixtura.errors import UserError
from mixtura.routing import Routing, Rows, SlotRouting

Pooling = Literal["sum", "highest", "vote"]


def highest(routing: Routing) -> Routing:
    """Keep each token's assignment with the largest weight, and give it the weight 1; the first of equals.

    Raises:
        UserError: a routing by slots, in which no token has an expert of its own.

    Example:
        >>> expert, weight = torch.tensor([[0, 1]]), torch.tensor([[0.3, 0.7]])
        >>> routing = Routing.from_choices(expert, weight, logits_TE=torch.zeros(1, 2), probs_TE=torch.zeros(1, 2))
        >>> highest(routing).expert_N.tolist(), highest(routing).weight_N.tolist()
        ([-1, 1], [1.0, 1.0])
    """
    if isinstance(routing, SlotRouting):
        raise UserError('expected pooling="sum" with a router of slots, got pooling by experts')
    token_N, numbers = routing.token_N, torch.arange(routing.token_N.shape[0], device=routing.token_N.device)
    weight_N = routing.weight_N.detach().where(routing.routes_N() < routing.num_experts, -torch.inf)
    best_T = weight_N.new_full((routing.num_tokens,), -torch.inf).scatter_reduce(0, token_N, weight_N, "amax")
    is_best_N = (weight_N == best_T[token_N]) & weight_N.isfinite()
    first_T = numbers.new_full((routing.num_tokens,), numbers.shape[0])
    first_T = first_T.scatter_reduce(0, token_N, numbers.where(is_best_N, numbers.shape[0]), "amin")
    expert_N = routing.expert_N.where(numbers == first_T[token_N], -1)
    return replace(routing, expert_N=expert_N, weight_N=torch.ones_like(routing.weight_N), partial=True, bypass_TD=None)


def vote(rows: Rows, experts: Callable[[Rows], Tensor]) -> Tensor:
    """Each expert votes for its largest output; gives each class's share of its token's votes: (T, classes).

    A token without an expert gets zeros.

    Example:
        >>> from mixtura.kernels.rows import RowIndex
        >>> index = RowIndex(torch.tensor([0, 0]), torch.tensor([1, 1]), torch.tensor([[0, 1]]), 1, True)
        >>> rows = Rows(x_TD=torch.zeros(1, 2), weight_N=torch.tensor([0.1, 0.9]), index=index)
        >>> vote(rows, lambda rows: torch.tensor([[1.0, 2.0], [3.0, 0.0]])).tolist()
        [[0.5, 0.5]]
    """
    y_NC = experts(replace(rows, weight_N=torch.ones_like(rows.weight_N)))
    is_row_N = torch.arange(y_NC.shape[0], device=y_NC.device) < rows.counts_E.sum()
    ballot_NC = torch.zeros_like(y_NC).scatter_(1, y_NC.argmax(-1, keepdim=True), is_row_N.unsqueeze(1).to(y_NC.dtype))
    votes_TC = rows.combine(ballot_NC)
    return votes_TC / votes_TC.sum(-1, keepdim=True).clamp(min=1)
