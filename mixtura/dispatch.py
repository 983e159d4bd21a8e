"""From `Routing` to `Rows`: group the assignments by expert, and drop what does not fit where a capacity is set."""

import math
from typing import Literal

import torch
from torch import Tensor

from mixtura.errors import UserError
from mixtura.kernels.rows import RowIndex
from mixtura.routing import Routing, Rows

Policy = Literal["drop", "priority"]


def expert_capacity(
    num_tokens: int,
    *,
    num_experts: int,
    k: int,
    factor: float,
    multiple_of: int = 1,
    minimum: int = 1,
    maximum: int | None = None,
) -> int:
    """Rows that one expert accepts: ceil(T * K * factor / E), rounded up to `multiple_of`, within the bounds.

    Source: Lepikhin et al. 2020 (GShard), section 2.2; the rounding is that of V-MoE (multiples of 4).

    Example:
        >>> expert_capacity(10, num_experts=4, k=2, factor=1.0), expert_capacity(
        ...     10, num_experts=4, k=2, factor=1.0, multiple_of=4
        ... )
        (5, 8)
    """
    # The product is rounded a little before the ceiling: 1.1 * 10 in binary must not cost an extra row.
    rows = math.ceil(round(num_tokens * k * factor / num_experts, 9))
    rows = max(-(-rows // multiple_of) * multiple_of, minimum)
    return rows if maximum is None else min(rows, maximum)


def _priority_order(routing: Routing, score_T: Tensor | None) -> Tensor:
    """Assignments by rank of choice first, and within a rank by the token's score, best first: int64 (N,)."""
    token_N, weight_N = routing.token_N, routing.weight_N.detach()
    if score_T is None:
        score_T = weight_N.new_full((routing.num_tokens,), -torch.inf)
        score_T = score_T.scatter_reduce(0, token_N, weight_N, "amax")
    by_score = torch.argsort(score_T[token_N], descending=True, stable=True)
    if routing.choices is None:
        return by_score
    rank_N = torch.arange(token_N.shape[0], device=token_N.device) % routing.choices
    return by_score[torch.argsort(rank_N[by_score], stable=True)]


def dispatch(
    routing: Routing,
    x_TD: Tensor,
    *,
    capacity: int | None = None,
    policy: Policy = "drop",
    priority_T: Tensor | None = None,
) -> Rows:
    """Group the assignments by expert; with a capacity, keep at most that many of each expert.

    An expert's rows stand in token order, or, where "priority" had to choose, in the order of their priority.

    Args:
        routing: who goes to whom.
        x_TD: the tokens, (T, D).
        capacity: rows per expert; None keeps all of them (dropless).
        policy: who is kept when an expert is full. "drop": the first in token order. "priority" (batch-prioritised
            routing, Riquelme et al. 2021, algorithm 2): every first choice before any second choice, and within a
            rank the tokens with the largest score.
        priority_T: (T,), the score of "priority"; None takes each token's largest weight.

    Raises:
        UserError: a policy that does not exist, or a capacity below 1.

    Example:
        >>> expert, weight = torch.tensor([[0], [0], [1]]), torch.tensor([[0.5], [0.9], [0.7]])
        >>> routing = Routing.from_choices(expert, weight, logits_TE=torch.zeros(3, 2), probs_TE=torch.zeros(3, 2))
        >>> dispatch(routing, torch.zeros(3, 1), capacity=1).index.token_N.tolist()
        [0, 2]
        >>> dispatch(routing, torch.zeros(3, 1), capacity=1, policy="priority").index.token_N.tolist()
        [1, 2]
    """
    if policy not in ("drop", "priority"):
        raise UserError(f'expected policy "drop" or "priority", got {policy!r}')
    if capacity is not None and capacity < 1:
        raise UserError(f"expected a capacity of at least 1 row per expert, got {capacity}; None means dropless")
    E, N, K = routing.num_experts, routing.expert_N.shape[0], routing.choices
    expert_N = routing.expert_N
    if routing.mask_T is not None:
        expert_N = expert_N.where(routing.mask_T[routing.token_N], E)
    if capacity is not None and policy == "priority":
        order_N = _priority_order(routing, priority_T)
        order_N = order_N[torch.argsort(expert_N[order_N], stable=True)]
    else:
        order_N = torch.argsort(expert_N, stable=True)
    counts_E = torch.bincount(expert_N, minlength=E)[:E]
    dropless = capacity is None and routing.mask_T is None
    if not dropless:
        order_N, counts_E = _keep(order_N, expert_N, counts_E, capacity=capacity)
    slot_TK = None
    if K is not None:
        rows = torch.arange(order_N.shape[0], device=order_N.device)
        slot_TK = order_N.new_full((N,), -1).index_copy_(0, order_N, rows).view(-1, K)
    index = RowIndex(routing.token_N[order_N], counts_E, slot_TK, routing.num_tokens, dropless)
    return Rows(x_TD=x_TD, weight_N=routing.weight_N[order_N], index=index)


def _keep(order_N: Tensor, expert_N: Tensor, counts_E: Tensor, *, capacity: int | None) -> tuple[Tensor, Tensor]:
    """Cut the grouped order to real experts and to the capacity; gives the kept order and counts."""
    E = counts_E.shape[0]
    sorted_expert_N = expert_N[order_N]
    keep_N = sorted_expert_N < E
    if capacity is not None:
        start_E = counts_E.cumsum(0) - counts_E
        place_N = torch.arange(order_N.shape[0], device=order_N.device) - start_E[sorted_expert_N.clamp(max=E - 1)]
        keep_N &= place_N < capacity
        counts_E = counts_E.clamp(max=capacity)
    return order_N[keep_N], counts_E
