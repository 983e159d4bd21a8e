"""Sorting assignments by expert: only their numbers move, and no shape depends on a value. How many an expert takes.

Example:
    >>> group(torch.tensor([1, 0, 2, 1]), num_experts=2)
    (tensor([1, 0, 3, 2]), tensor([1, 2]))
"""

import torch
from torch import Tensor


def group(route_N: Tensor, *, num_experts: int) -> tuple[Tensor, Tensor]:
    """Order the assignments by expert, stably; those that reach none (routes of E and more) go to the end.

    Returns:
        order_N: int64 (N,), the assignment at each place.
        counts_E: int64 (E,), assignments of each expert.

    Example:
        >>> order, counts = group(torch.tensor([0, 0, 0]), num_experts=2)
        >>> order.tolist(), counts.tolist()
        ([0, 1, 2], [3, 0])
    """
    # Late: the longest chain of imports would go through here.
    from mixtura.kernels import native

    if route_N.dtype is torch.int64 and native.takes_index(route_N):
        return native.sort_stably(route_N, groups=num_experts)
    # Narrow keys are sorted by radix on a CPU, in a third of the time.
    narrow = torch.int16 if num_experts < torch.iinfo(torch.int16).max else torch.int32
    order_N = torch.sort(route_N.clamp(max=num_experts).to(narrow), stable=True).indices
    counts = route_N.new_zeros(num_experts + 1)
    counts.scatter_add_(0, route_N.clamp(max=num_experts), torch.ones_like(route_N))
    return order_N, counts[:num_experts]


def keep_first(order_N: Tensor, route_N: Tensor, counts_E: Tensor, *, capacity: int) -> tuple[Tensor, Tensor]:
    """Of a grouped order keep each expert's first `capacity`; the others move to the tail, in their order.

    Returns:
        The new order (N,) and counts (E,).

    Example:
        >>> keep_first(torch.tensor([0, 1, 2]), torch.tensor([0, 0, 1]), torch.tensor([2, 1]), capacity=1)
        (tensor([0, 2, 1]), tensor([1, 1]))
    """
    N, E = order_N.shape[0], counts_E.shape[0]
    places_N = torch.arange(N, device=order_N.device)
    start_E = counts_E.cumsum(0) - counts_E
    # The tail's routes start behind everything, so that no place of theirs is below the capacity.
    start = torch.cat([start_E, start_E.new_full((1,), -capacity)])
    is_kept_N = places_N - start[route_N[order_N].clamp(max=E)] < capacity
    kept_before_N = is_kept_N.cumsum(0)
    kept_counts_E = counts_E.clamp(max=capacity)
    tail_N = kept_counts_E.sum() + places_N - kept_before_N
    return order_N.scatter(0, torch.where(is_kept_N, kept_before_N - 1, tail_N), order_N), kept_counts_E


def slots_of(order_N: Tensor, counts_E: Tensor, *, choices: int, all_kept: bool) -> Tensor:
    """Where each token finds its rows again: int64 (T, K), -1 for an assignment in the tail.

    Example:
        >>> slots_of(torch.tensor([1, 0, 2, 3]), torch.tensor([1, 2]), choices=2, all_kept=False)
        tensor([[ 1,  0],
                [ 2, -1]])
    """
    N = order_N.shape[0]
    slot_N = order_N.scatter(0, order_N, torch.arange(N, device=order_N.device))  # every place is written
    if not all_kept:
        slot_N = slot_N.where(slot_N < counts_E.sum(), -1)
    return slot_N.view(-1, choices)


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
    # In integers, for symbolic numbers of tokens; half a billionth less, so that 1.1 * 10 costs no extra row.
    rows = -(-num_tokens * k * (2 * round(factor * 1e9) - 1) // (2 * 10**9 * num_experts))
    rows = max(-(-rows // multiple_of) * multiple_of, minimum)
    return rows if maximum is None else min(rows, maximum)
