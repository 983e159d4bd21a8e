"""Balanced assignments: entropic transport by prices, and the auction that turns prices into an exact assignment.

A price per expert says how much a row of it costs: tokens go where score - price is largest. Sinkhorn's algorithm finds
the prices at which tokens that choose by softmax fill all experts alike; an auction those at which each token has the
expert that it wants most.

Example:
    >>> scores = torch.tensor([[3.0, 0.0], [2.0, 0.0]])
    >>> auction(scores, torch.tensor([1, 1]), price_E=torch.zeros(2), epsilon=0.1).tolist()
    [0, 1]
"""

import torch
from torch import Tensor

from mixtura.kernels.grouping import group
from mixtura.kernels.overflow import may_look, place


def balancing_prices(
    score_TE: Tensor,
    *,
    iterations: int,
    temperature: float | Tensor = 1.0,
    price_E: Tensor | None = None,
    mask_T: Tensor | None = None,
) -> Tensor:
    """Prices at which softmax((score - price) / temperature) over the experts has equal column sums: (E,).

    One softmax per iteration does both of Sinkhorn's scalings, by rows and, through the price, by columns; it stays
    finite where exp(score) would not.

    Source: Cuturi 2013 (Sinkhorn distances), algorithm 1, on the logarithm of its vector v.

    Args:
        score_TE: (T, E).
        iterations: how often to adjust the prices; their number does not depend on values.
        temperature: of the softmax; small ones need more iterations.
        price_E: where to begin; None: at 0.
        mask_T: bool (T,), False for rows that do not count.

    Example:
        >>> score = torch.tensor([[4.0, 1.0], [1.0, 1.0]]).log()
        >>> (score - balancing_prices(score, iterations=20)).softmax(-1)
        tensor([[0.6667, 0.3333],
                [0.3333, 0.6667]])
    """
    T, E = score_TE.shape
    real_T = score_TE.new_ones(T) if mask_T is None else mask_T.to(score_TE.dtype)
    tiny = torch.finfo(score_TE.dtype).tiny
    even = (real_T.sum() / E).clamp(min=tiny)
    price_E = score_TE.new_zeros(E) if price_E is None else price_E
    for _ in range(iterations):
        share_E = real_T @ ((score_TE - price_E) / temperature).softmax(-1)
        price_E = price_E + temperature * (share_E / even).clamp(min=tiny).log()
    return price_E


def even_capacity(price_E: Tensor, num_rows: Tensor | int) -> Tensor:
    """Rows of each expert that differ by at most one; where they do, dear experts get one more: int64 (E,).

    Example:
        >>> even_capacity(torch.tensor([0.1, 0.5, 0.3]), 5).tolist()
        [1, 2, 2]
    """
    E = price_E.shape[0]
    rank_E = price_E.argsort(descending=True, stable=True).argsort()
    return num_rows // E + (rank_E < num_rows % E).long()


def auction(
    score_TE: Tensor,
    capacity_E: Tensor,
    *,
    price_E: Tensor,
    epsilon: float | Tensor,
    rounds: int = 64,
    mask_T: Tensor | None = None,
) -> Tensor:
    """Assign each row to an expert, no expert more than its capacity, for the largest sum of scores: int64 (T,).

    In a round every row without an expert bids for the one that it wants most at today's prices: as much more than the
    price as it prefers it to the next best, plus epsilon. An expert keeps its highest bids, and its price becomes the
    lowest bid kept. Where capacities sum to T and all rows have one within the rounds, the sum of scores is at most
    T * epsilon below the largest. Rows without one after the last round are given free places, one after another.

    On a CPU the rounds end when all rows are placed; elsewhere they all run, and nothing waits for the device.

    Source: Bertsekas 1988 (the auction algorithm), with the similar objects of Bertsekas and Castanon 1989.

    Args:
        score_TE: (T, E).
        capacity_E: int64 (E,), their sum at least the number of rows.
        price_E: (E,), where prices start; good ones save most rounds, see `balancing_prices`.
        epsilon: the smallest raise.
        rounds: at most so many.
        mask_T: bool (T,), False for rows that are not assigned; they get expert 0.

    Example:
        >>> scores = torch.tensor([[9.0, 8.0], [9.0, 1.0], [5.0, 0.0], [5.0, 4.0]])
        >>> auction(scores, torch.tensor([2, 2]), price_E=torch.zeros(2), epsilon=0.1).tolist()
        [1, 0, 0, 1]
    """
    (T, E), device = score_TE.shape, score_TE.device
    expert_T = torch.full((T,), E, device=device)
    if E == 1 or T == 0:
        return torch.zeros_like(expert_T)
    is_real_T = torch.ones_like(expert_T, dtype=torch.bool) if mask_T is None else mask_T
    free_price_E = price_E = price_E.masked_fill(capacity_E == 0, torch.inf)
    bid_T = score_TE.new_zeros(T)
    for number in range(rounds):
        is_bidding_T = is_real_T & (expert_T == E)
        if may_look(score_TE) and not is_bidding_T.any():
            break
        # All bid first, then few are left: later rounds serve an eighth at most, and the others wait.
        chosen = is_bidding_T.to(torch.int8).argsort(descending=True, stable=True)[: T if number == 0 else -(-T // 8)]
        wanted, worth = _best_two(score_TE[chosen] - price_E)
        is_bid = is_bidding_T[chosen]
        bid_T = bid_T.scatter(0, chosen, (price_E[wanted] + worth + epsilon).where(is_bid, bid_T[chosen]))
        expert_T = expert_T.scatter(0, chosen, wanted.where(is_bid, expert_T[chosen]))
        expert_T, price_E = _keep_highest(expert_T, bid_T, capacity_E=capacity_E, free_price_E=free_price_E)
    is_left_T = is_real_T & (expert_T == E)
    free_E = capacity_E - expert_T.new_zeros(E + 1).scatter_add_(0, expert_T, torch.ones_like(expert_T))[:E]
    held_TE = torch.zeros_like(score_TE, dtype=torch.bool)
    rest_T = place(is_left_T, torch.arange(T, device=device), score_TE=score_TE, held_TE=held_TE, free_E=free_E)
    # What is still without one is no real row, or was never in the capacities' sum.
    return torch.minimum(expert_T, rest_T) % E


def _best_two(value_TE: Tensor) -> tuple[Tensor, Tensor]:
    """The best expert of each row, and how much better it is than the next; twice max is faster than topk."""
    best = value_TE.max(-1)
    second = value_TE.scatter(-1, best.indices.unsqueeze(-1), -torch.inf).amax(-1)
    return best.indices, best.values - second


def _keep_highest(
    expert_T: Tensor, bid_T: Tensor, *, capacity_E: Tensor, free_price_E: Tensor
) -> tuple[Tensor, Tensor]:
    """Each expert keeps its highest bids: the experts (T,), E where a row lost its own, and the new prices (E,)."""
    T, E = expert_T.shape[0], capacity_E.shape[0]
    by_bid_T = bid_T.argsort(descending=True, stable=True)
    order_T, asked_E = group(expert_T[by_bid_T], num_experts=E)
    order_T, start_E = by_bid_T[order_T], asked_E.cumsum(0) - asked_E
    lowest_E = bid_T[order_T[(start_E + capacity_E - 1).clamp(0, T - 1)]]
    price_E = lowest_E.where((asked_E >= capacity_E) & (capacity_E > 0), free_price_E)
    sorted_T = expert_T[order_T]
    end = torch.cat([start_E + capacity_E, start_E.new_zeros(1)])
    kept_T = sorted_T.where(torch.arange(T, device=order_T.device) < end[sorted_T], E)
    return torch.empty_like(expert_T).scatter_(0, order_T, kept_T), price_E
