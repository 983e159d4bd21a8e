"""Second places: where assignments go whose experts are full. No shape depends on a value.

Example:
    >>> waiting, token = torch.tensor([True, True]), torch.tensor([0, 1])
    >>> scores = torch.tensor([[0.1, 0.9], [0.2, 0.8]])
    >>> place(waiting, token, score_TE=scores, held_TE=scores < 0, free_E=torch.tensor([5, 1])).tolist()
    [1, 0]
"""

import torch
from torch import Tensor

from mixtura.kernels.grouping import group


def may_look(x: Tensor) -> bool:
    """Whether looking at a value costs nothing: on a CPU, where nothing waits, outside of a graph being recorded.

    Example:
        >>> may_look(torch.zeros(1)), may_look(torch.zeros(1, device="meta"))
        (True, False)
    """
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def place(
    waiting_N: Tensor,
    token_N: Tensor,
    *,
    score_TE: Tensor,
    held_TE: Tensor,
    free_E: Tensor,
    served_N: Tensor | None = None,
) -> Tensor:
    """One after another, give each waiting assignment its token's best expert with a free row that it has not yet.

    The result is that of a loop over the assignments, found in at most E rounds. In a round all ask at once as if no
    expert filled up: a token's first waiting assignment asks for its best usable expert, its second for the next. Up to
    the first refusal, that is what the loop would do; everything from there on asks again. A refusal means that an
    expert has filled up in this round, so that E rounds end it; on a CPU they end when nobody finds a place any more.

    Args:
        waiting_N: bool (N,), which assignments to place.
        token_N: int64 (N,).
        score_TE: (T, E), what "best" means; of equals the first.
        held_TE: bool (T, E), experts that a token cannot be given.
        free_E: int64 (E,), free rows of each expert.
        served_N: int64 (N,), the assignments in the order in which they are served; None: as they stand.

    Returns:
        int64 (N,), the expert of each placed assignment, E for all others.

    Example:
        >>> token, scores = torch.tensor([0, 0, 1]), torch.tensor([[0.5, 0.3, 0.2], [0.6, 0.3, 0.1]])
        >>> place(token >= 0, token, score_TE=scores, held_TE=scores < 0, free_E=torch.tensor([1, 1, 1])).tolist()
        [0, 1, 2]
    """
    (T, E), N = score_TE.shape, token_N.shape[0]
    if N == 0:
        return token_N.new_full((0,), E)
    best_TE = score_TE.detach().argsort(dim=-1, descending=True, stable=True)
    if served_N is not None:
        token_N, waiting_N = token_N[served_N], waiting_N[served_N]
    places_N = torch.arange(N, device=token_N.device)
    by_token_N = token_N.argsort(stable=True)
    first_N = torch.searchsorted(token_N[by_token_N], token_N[by_token_N])
    expert_N = token_N.new_full((N,), E)
    # One column and one count more, for "no expert".
    held = torch.cat([held_TE, held_TE.new_ones(T, 1)], dim=1)
    free = torch.cat([free_E, free_E.new_zeros(1)])
    for _ in range(E):
        before_N = waiting_N[by_token_N].cumsum(0) - waiting_N[by_token_N].long()
        nth_N = torch.empty_like(by_token_N).scatter_(0, by_token_N, before_N - before_N[first_N])
        usable_TE = ~held[:, :E] & (free[:E] > 0)
        ask_N = _nth_usable(usable_TE.gather(1, best_TE), best_TE, token_N=token_N, nth_N=nth_N).where(waiting_N, E)
        if may_look(ask_N) and not (ask_N < E).any():
            break
        order_N, asked_E = group(ask_N, num_experts=E)
        asks = ask_N[order_N]
        start = torch.cat([asked_E.cumsum(0) - asked_E, asked_E.new_zeros(1)])
        is_refused = (asks < E) & (places_N - start[asks] >= free[asks])
        first_refused = order_N.where(is_refused, N).amin()
        given_N = ask_N.where(places_N < first_refused, E)
        expert_N = torch.minimum(expert_N, given_N)
        waiting_N = waiting_N & (given_N == E)
        held.view(-1).scatter_(0, token_N * (E + 1) + given_N, 1)
        free.scatter_add_(0, given_N, -torch.ones_like(given_N))
    return expert_N if served_N is None else torch.empty_like(expert_N).scatter_(0, served_N, expert_N)


def _nth_usable(usable_TE: Tensor, best_TE: Tensor, *, token_N: Tensor, nth_N: Tensor) -> Tensor:
    """Each assignment's n-th usable expert in the order of `best_TE`, from 0; E where there are fewer: int64 (N,)."""
    T, E = usable_TE.shape
    # How many are usable so far rises along a row; with an offset per row all rows make one sorted sequence.
    so_far_TE = usable_TE.cumsum(1) + torch.arange(T, device=usable_TE.device).unsqueeze(1) * (E + 1)
    found_N = torch.searchsorted(so_far_TE.view(-1), token_N * (E + 1) + nth_N + 1)
    expert_N = best_TE.reshape(-1)[found_N.clamp(max=T * E - 1)]
    return expert_N.where(found_N // E == token_N, E)
