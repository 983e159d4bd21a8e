"""What surrounds a layer's forward: listeners that hear its routing, replays that decide it, recomputation."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import nn

from mixtura.errors import UserError

Tap = Callable[[nn.Module, Any, Any], None]
_taps: ContextVar[tuple[Tap, ...]] = ContextVar("mixtura_taps", default=())


@contextmanager
def tap(listener: Tap) -> Iterator[None]:
    """Inside the block every MoE layer calls `listener(layer, routing, rows)`, once per forward.

    A forward that activation recomputation repeats on the way back is not heard again.

    Example:
        >>> import mixtura as mx
        >>> layer = mx.MoEConfig(dim=4, hidden=8, num_experts=2, k=1, router="switch").build()
        >>> seen = []
        >>> with tap(lambda layer, routing, rows: seen.append(routing.num_tokens)):
        ...     _ = layer(torch.zeros(3, 4))
        >>> seen
        [3]
    """
    token = _taps.set((*_taps.get(), listener))
    try:
        yield
    finally:
        _taps.reset(token)


def announce(layer: nn.Module, routing: Any, rows: Any) -> None:
    """Tell every tap what a layer routed.

    Example:
        >>> announce(nn.Identity(), None, None)  # no tap is open: nothing happens
    """
    for listener in _taps.get():
        listener(layer, routing, rows)


def is_recomputing() -> bool:
    """Whether this forward runs inside a backward pass, as activation recomputation does.

    Example:
        >>> is_recomputing()
        False
    """
    return bool(torch._C._current_graph_task_id() != -1)


class _Replay:
    """An open block: what each router chose, and how many of its forwards were served."""

    def __init__(self, logged: Mapping[nn.Module, Sequence[Any]]) -> None:
        self.logged, self.opened_in_backward = logged, is_recomputing()
        self.served: Counter[nn.Module] = Counter()
        self.repeated: Counter[nn.Module] = Counter()

    def next(self, router: nn.Module) -> Any:
        if is_recomputing() and not self.opened_in_backward:
            # The backward pass repeats the forwards from the last one to the first.
            self.repeated[router] += 1
            number = self.served[router] - self.repeated[router]
        else:
            number = self.served[router]
            self.served[router] += 1
        if not 0 <= number < len(self.logged[router]):
            raise UserError(
                f"expected a log of at least {number + 1} forwards of this layer, got {len(self.logged[router])}; "
                "replay the calls that were recorded, in their order"
            )
        return self.logged[router][number]


# Not a ContextVar: on a GPU the backward pass, and with it recomputation, runs in a thread of its own.
_replays: list[_Replay] = []


@contextmanager
def replaying(logged: Mapping[nn.Module, Sequence[Any]]) -> Iterator[None]:
    """Inside the block `replayed` answers for these routers, forward by forward.

    Example:
        >>> router = nn.Identity()
        >>> with replaying({router: ["first", "second"]}):
        ...     replayed(router), replayed(router)
        ('first', 'second')
    """
    block = _Replay(logged)
    _replays.append(block)
    try:
        yield
    finally:
        _replays.remove(block)


def replayed(router: nn.Module) -> Any:
    """The routing that the innermost replay around has for this router's forward, or None.

    Example:
        >>> replayed(nn.Identity()) is None
        True
    """
    for block in reversed(_replays):
        if router in block.logged:
            return block.next(router)
    return None
