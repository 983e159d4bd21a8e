"""Where experts should live: measured loads -> a placement that keeps the busiest rank's load small."""

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush

from mixtura.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Which experts each rank holds.

    Attributes:
        experts: of each rank, the experts it holds a copy of, in ascending order; as many on every rank.
        loads: of each rank, the load it gets when an expert's tokens are shared out evenly over its copies.

    Example:
        >>> Placement(experts=((0, 1), (2, 3)), loads=(3.0, 1.0)).imbalance
        1.5
    """

    experts: tuple[tuple[int, ...], ...]
    loads: tuple[float, ...]

    @property
    def imbalance(self) -> float:
        """The busiest rank's load over the mean; 1 where there is no load."""
        total = sum(self.loads)
        return max(self.loads) * len(self.loads) / total if total else 1.0

    @property
    def order(self) -> tuple[int, ...]:
        """The experts of all ranks one after another: what `reorder_experts` takes where there are no copies."""
        return tuple(expert for rank in self.experts for expert in rank)


def place_experts(loads: Sequence[float], *, ranks: int, copies: int = 0) -> Placement:
    """Spread experts, and further copies of the busiest, over ranks so that the largest load is small.

    The copies go one by one to the expert whose copies are busiest. Then experts go from the busiest to the idlest to
    the rank with the least load that has room and does not hold the expert already (longest processing time first,
    Graham 1969: without copies and limits at most 4/3 of the optimum), and pairs are exchanged between the busiest rank
    and others as long as that lowers the larger of the two loads.

    Args:
        loads: of each expert, at least 0, in any unit: tokens per step, say.
        ranks: R; E + copies must be a multiple.
        copies: further copies beside one of each expert, at most E * (R - 1): no rank needs two of one expert.

    Raises:
        UserError: a negative or infinite load, numbers that do not divide, too many copies.

    Example:
        >>> place_experts([8, 1, 1, 6], ranks=2).experts
        ((0, 2), (1, 3))
        >>> place_experts([9, 1, 1], ranks=2, copies=1).experts
        ((0, 1), (0, 2))
    """
    E = len(loads)
    if E < 1 or any(not 0 <= load < float("inf") for load in loads):
        raise UserError(f"expected the load of at least one expert, each finite and not negative, got {list(loads)}")
    if ranks < 1 or copies < 0 or (E + copies) % ranks:
        raise UserError(
            f"expected ranks that divide the {E} experts and {copies} further copies, got {ranks}; "
            f"choose copies so that {E} + copies is a multiple of the ranks"
        )
    if copies > E * (ranks - 1):
        raise UserError(f"expected at most {E * (ranks - 1)} copies, one of each expert per rank, got {copies}")
    number = _copies(loads, copies, ranks)
    each = [load / n for load, n in zip(loads, number, strict=True)]
    held = _greedy(each, number, ranks)
    _exchange(held, each)
    return Placement(
        experts=tuple(tuple(sorted(rank)) for rank in held), loads=tuple(sum(each[e] for e in rank) for rank in held)
    )


def _copies(loads: Sequence[float], copies: int, ranks: int) -> list[int]:
    """How many of each expert there will be."""
    number = [1] * len(loads)
    busiest = [(-load, expert) for expert, load in enumerate(loads)] if ranks > 1 else []
    heapify(busiest)
    for _ in range(copies):
        _, expert = heappop(busiest)
        number[expert] += 1
        if number[expert] < ranks:
            heappush(busiest, (-loads[expert] / number[expert], expert))
    return number


def _greedy(each: Sequence[float], number: Sequence[int], ranks: int) -> list[set[int]]:
    """The busiest first, to the idlest rank; experts with most copies before all, since they fit in fewest places."""
    room = sum(number) // ranks
    held: list[set[int]] = [set() for _ in range(ranks)]
    load = [0.0] * ranks
    order = sorted(range(len(each)), key=lambda e: (-(number[e] == ranks), -each[e], e))
    for expert in order:
        for _ in range(number[expert]):
            free = [rank for rank in range(ranks) if len(held[rank]) < room and expert not in held[rank]]
            rank = min(free or _make_room(held, room, expert), key=lambda r: (load[r], r))
            if len(held[rank]) == room:
                _pass_on(held, load, each, rank=rank, room=room, expert=expert)
            held[rank].add(expert)
            load[rank] += each[expert]
    return held


def _make_room(held: list[set[int]], room: int, expert: int) -> list[int]:
    """Full ranks without this expert that hold something which a rank with room, all of which have it, could take."""
    open_ranks = [rank for rank in held if len(rank) < room]
    return [r for r, rank in enumerate(held) if expert not in rank and any(rank - other for other in open_ranks)]


def _pass_on(
    held: list[set[int]], load: list[float], each: Sequence[float], *, rank: int, room: int, expert: int
) -> None:
    """Move the idlest possible expert of a full rank to a rank with room."""
    moves = [(each[e], e, r) for r, other in enumerate(held) if len(other) < room for e in held[rank] - other]
    weight, moved, to = min(move for move in moves if move[1] != expert)
    held[rank].remove(moved)
    held[to].add(moved)
    load[rank] -= weight
    load[to] += weight


def _exchange(held: list[set[int]], each: Sequence[float]) -> None:
    """Exchange pairs of experts between the busiest rank and others while the larger of their two loads falls."""
    while True:
        load = [sum(each[e] for e in rank) for rank in held]
        top = max(range(len(held)), key=lambda r: (load[r], -r))
        best = (load[top] * (1 - 1e-12), 0, 0, 0)
        for rank, other in enumerate(held):
            for mine in held[top] - other:
                for theirs in other - held[top]:
                    moved = each[mine] - each[theirs]
                    best = min(best, (max(load[top] - moved, load[rank] + moved), rank, mine, theirs))
        new, rank, mine, theirs = best
        if new >= load[top] * (1 - 1e-12):
            return
        held[top] ^= {mine, theirs}
        held[rank] ^= {mine, theirs}
