"""From `Routing` to `Rows`: group the assignments by expert, and set aside what does not fit where a capacity is set.

Every policy is a filter of the list of assignments. No shape here depends on a value, so nothing waits for a device
and torch.compile sees one graph.
"""

from dataclasses import dataclass, fields, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from mixtura.errors import UserError
from mixtura.kernels.grouping import expert_capacity, group, keep_first, slots_of
from mixtura.kernels.overflow import place
from mixtura.kernels.rows import RowIndex
from mixtura.routing import Routing, Rows, SlotRouting, SlotRows

Policy = Literal["drop", "priority", "reroute"]


def check_policy(policy: str) -> None:
    """Refuse a policy that does not exist.

    Raises:
        UserError: names those that do.

    Example:
        >>> check_policy("drop")
    """
    if policy not in get_args(Policy):
        raise UserError(f"expected a policy among {', '.join(get_args(Policy))}, got {policy!r}")


@dataclass(frozen=True, kw_only=True, repr=False)
class Capacity:
    """How many rows one expert accepts in a forward: by a factor, fixed, or automatic.

    Attributes:
        factor: rows as a multiple of the even share N / E (N = T*K assignments); None: see `fixed`.
        fixed: the same number in every forward; None with no factor: automatic, as many as come, up to `maximum`.
        multiple_of: round up to a multiple of this (V-MoE: 4).
        minimum: at least so many.
        maximum: at most so many; None: no limit.

    Raises:
        UserError: a factor and a fixed number together, or a value that would drop every row.

    Example:
        >>> Capacity(factor=1.25, multiple_of=4).rows(20, num_experts=4)
        8
        >>> Capacity().rows(20, num_experts=4) is None
        True
    """

    factor: float | None = None
    fixed: int | None = None
    multiple_of: int = 1
    minimum: int = 1
    maximum: int | None = None

    def __post_init__(self) -> None:
        if self.factor is not None and not self.factor > 0:
            raise UserError(f"expected capacity_factor above 0, or None for dropless, got {self.factor}")
        if self.factor is not None and self.fixed is not None:
            raise UserError(f"expected a capacity factor or a fixed capacity, got {self.factor} and {self.fixed}")
        for name in ("fixed", "multiple_of", "minimum", "maximum"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"expected a capacity with {name} of at least 1, got {value}; 0 rows would drop all")
        if self.maximum is not None and self.maximum < self.minimum:
            raise UserError(f"expected a capacity with minimum <= maximum, got {self.minimum} and {self.maximum}")

    def __repr__(self) -> str:
        changed = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
        return f"Capacity({', '.join(f'{name}={value}' for name, value in changed.items())})"

    def rows(self, num_assignments: int, *, num_experts: int) -> int | None:
        """Rows that one expert accepts of N assignments; None: all."""
        if self.fixed is not None:
            return self.fixed
        if self.factor is None:
            return self.maximum
        # N assignments with one choice each are T tokens with K; this also holds where K differs from token to token.
        return expert_capacity(
            num_assignments,
            num_experts=num_experts,
            k=1,
            factor=self.factor,
            multiple_of=self.multiple_of,
            minimum=self.minimum,
            maximum=self.maximum,
        )


def dispatch(
    routing: Routing,
    x_TD: Tensor,
    *,
    capacity: int | None = None,
    policy: Policy = "drop",
    priority_T: Tensor | None = None,
) -> Rows:
    """Group the assignments by expert; with a capacity, keep at most that many of each expert.

    An expert's rows stand in the order in which they were served. Assignments that reach no expert (padding, null
    experts, dropped ones) form the tail behind the rows of the last expert.

    Args:
        routing: who goes to whom.
        x_TD: the tokens, (T, D).
        capacity: rows per expert; None keeps all of them (dropless).
        policy: who is kept when an expert is full. "drop": the first in token order (of a routing `by_rank`, every
            first choice before any second one). "priority" (batch-prioritised routing, Riquelme et al. 2021,
            algorithm 2): every first choice before any second choice, and within a rank the tokens with the largest
            score. "reroute": served as by "drop", or by `priority_T` where it is given; then, in the same order, each
            one without room goes to the best expert, by `probs_TE`, that has room and that its token has not yet. Its
            weight is multiplied by the new expert's probability over the old one's, so that a weight that is a
            probability becomes the new expert's. None is lost while such an expert has room.
        priority_T: (T,), the score of "priority"; None takes each token's largest weight.

    Raises:
        UserError: a policy that does not exist, or a capacity below 1.

    Example:
        >>> expert, weight = torch.tensor([[0], [0], [1]]), torch.tensor([[0.5], [0.9], [0.7]])
        >>> routing = Routing.from_choices(expert, weight, logits_TE=torch.zeros(3, 2), probs_TE=torch.zeros(3, 2))
        >>> rows = dispatch(routing, torch.zeros(3, 1), capacity=1)
        >>> rows.counts_E.tolist(), rows.index.token_N.tolist()
        ([1, 1], [0, 2, 1])
        >>> dispatch(routing, torch.zeros(3, 1), capacity=1, policy="priority").index.token_N.tolist()
        [1, 2, 0]
    """
    check_policy(policy)
    if capacity is not None and capacity < 1:
        raise UserError(f"expected a capacity of at least 1 row per expert, got {capacity}; None means dropless")
    if isinstance(routing, SlotRouting):
        return _dispatch_slots(routing, x_TD)
    served_N = None if capacity is None else _serving_order(routing, policy=policy, priority_T=priority_T)
    if policy == "reroute" and capacity is not None:
        routing = reroute(routing, capacity=capacity, served_N=served_N)
    route_N = routing.routes_N()
    order_N, counts_E = group(route_N if served_N is None else route_N[served_N], num_experts=routing.num_experts)
    order_N = order_N if served_N is None else served_N[order_N]
    if capacity is not None:
        order_N, counts_E = keep_first(order_N, route_N, counts_E, capacity=capacity)
    return _rows(routing, x_TD, order_N, counts_E, all_kept=capacity is None and routing.reaches_all)


def _rows(routing: Routing, x_TD: Tensor, order_N: Tensor, counts_E: Tensor, *, all_kept: bool) -> Rows:
    K = routing.choices
    index = RowIndex(
        routing.token_N.index_select(0, order_N),
        counts_E,
        None if K is None else slots_of(order_N, counts_E, choices=K, all_kept=all_kept),
        routing.num_tokens,
        all_kept,
    )
    return Rows(x_TD=x_TD, weight_N=routing.weight_N.index_select(0, order_N), index=index)


def _dispatch_slots(routing: SlotRouting, x_TD: Tensor) -> SlotRows:
    """Slots are their experts' rows: each a mean of its sequence's tokens."""
    (B, L, S), D = routing.slots_shape, x_TD.shape[1]
    share_BLS = routing.dispatch_TS.to(x_TD.dtype).view(B, L, S)
    slots_SD = (share_BLS.transpose(1, 2) @ x_TD.view(B, L, D)).reshape(B * S, D)
    order_N, counts_E = group(routing.expert_N, num_experts=routing.num_experts)
    rows = _rows(replace(routing, choices=1), slots_SD, order_N, counts_E, all_kept=True)
    index = rows.index._replace(num_tokens=slots_SD.shape[0])
    return SlotRows(x_TD=slots_SD, weight_N=rows.weight_N, index=index, combine_BLS=routing.combine_TS.view(B, L, S))


def reroute(routing: Routing, *, capacity: int, served_N: Tensor | None = None) -> Routing:
    """Send what overflows to the best experts with room; see `dispatch`. What finds none gets expert -1.

    Args:
        routing: who asks for whom.
        capacity: rows per expert.
        served_N: int64 (N,), the assignments in the order in which they are served; None: as they stand.

    Example:
        >>> expert, probs = torch.tensor([[0], [0]]), torch.tensor([[0.8, 0.2], [0.6, 0.4]])
        >>> routing = Routing.from_choices(expert, probs[:, :1], logits_TE=probs.log(), probs_TE=probs)
        >>> moved = reroute(routing, capacity=1)
        >>> moved.expert_N.tolist(), [round(w, 4) for w in moved.weight_N.tolist()]
        ([0, 1], [0.8, 0.4])
    """
    route_N, token_N, (T, routes) = routing.routes_N(), routing.token_N, routing.probs_TE.shape
    N, E = route_N.shape[0], routing.num_experts
    order_N, counts_E = group(route_N if served_N is None else route_N[served_N], num_experts=E)
    order_N = order_N if served_N is None else served_N[order_N]
    order_N, kept_E = keep_first(order_N, route_N, counts_E, capacity=capacity)
    is_kept_N = torch.zeros_like(route_N, dtype=torch.bool)
    is_kept_N.scatter_(0, order_N, torch.arange(N, device=order_N.device) < kept_E.sum())
    held = is_kept_N.new_zeros(T, E + 1)
    held.view(-1).scatter_(0, token_N * (E + 1) + route_N.where(is_kept_N, E), 1)
    is_waiting_N = ~is_kept_N & (route_N < E)
    new_N = place(
        is_waiting_N,
        token_N,
        score_TE=routing.probs_TE[:, :E],
        held_TE=held[:, :E],
        free_E=capacity - kept_E,
        served_N=served_N,
    )
    is_moved_N = new_N < E
    # What stays where it is must not divide: its probability may be 0, and 0 times its gradient NaN.
    old_N, new_index_N = (token_N * routes + e.where(is_moved_N, 0) for e in (route_N, new_N))
    p_old, p_new = (routing.probs_TE.reshape(-1)[index].where(is_moved_N, 1) for index in (old_N, new_index_N))
    ratio_N = p_new / p_old.clamp(min=torch.finfo(p_old.dtype).eps ** 2)
    expert_N = new_N.where(is_moved_N, routing.expert_N.masked_fill(is_waiting_N, -1))
    return replace(routing, expert_N=expert_N, weight_N=routing.weight_N * ratio_N, partial=True)


def _serving_order(routing: Routing, *, policy: Policy, priority_T: Tensor | None) -> Tensor | None:
    """The assignments in the order in which experts serve them: int64 (N,); None: as they stand."""
    N, K = routing.token_N.shape[0], routing.choices
    if policy == "drop" or (policy == "reroute" and priority_T is None):
        if not routing.by_rank or K is None:
            return None
        return torch.arange(N, device=routing.token_N.device).view(-1, K).T.reshape(-1)
    token_N, weight_N = routing.token_N, routing.weight_N.detach()
    if priority_T is None:
        priority_T = weight_N.new_full((routing.num_tokens,), -torch.inf)
        priority_T = priority_T.scatter_reduce(0, token_N, weight_N, "amax")
    by_score = torch.argsort(priority_T[token_N], descending=True, stable=True)
    if K is None:
        return by_score
    rank_N = torch.arange(N, device=token_N.device) % K
    return by_score[torch.argsort(rank_N[by_score], stable=True)]
