"""What surrounds a layer's forward: listeners that hear its routing, replays that decide it, recomputation.

Each kind of block is also on a plain list of all open ones: torch.compile can guard on that, and on no ContextVar.
While no block is open nothing of this shows in a graph; an open one breaks the graph where its Python has to run.
"""

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
_open_taps: list[Tap] = []


def outside_graph(run: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function that must run in Python each time: torch.compile breaks its graph there.

    Example:
        >>> outside_graph(max, 1, 2)
        2
    """
    if torch.compiler.is_compiling():
        from mixtura.uncompiled import call  # imports the compiler, which takes seconds

        return call(run, *arguments)
    return run(*arguments)


def layer_names(model: nn.Module) -> dict[nn.Module, str]:
    """Every module of a model and its name, the same whether or not the model is wrapped by torch.compile.

    Example:
        >>> list(layer_names(nn.Sequential(nn.ReLU())).values())
        ['', '0']
    """
    # torch.compile(module) holds the module under this name.
    return {module: ".".join(n for n in name.split(".") if n != "_orig_mod") for name, module in model.named_modules()}


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
    _open_taps.append(listener)
    try:
        yield
    finally:
        _open_taps.pop()
        _taps.reset(token)


def is_heard() -> bool:
    """Whether any tap is open, for those who would have to make what they announce.

    Example:
        >>> is_heard()
        False
    """
    return bool(_open_taps)


def announce(layer: nn.Module, routing: Any, rows: Any) -> None:
    """Tell every tap what a layer routed, unless this forward is a recomputation.

    Example:
        >>> announce(nn.Identity(), None, None)  # no tap is open: nothing happens
    """
    if _open_taps:
        outside_graph(_announce, layer, routing, rows)


def _announce(layer: nn.Module, routing: Any, rows: Any) -> None:
    if not is_recomputing():
        for listener in _taps.get():
            listener(layer, routing, rows)


def is_recomputing() -> bool:
    """Whether this forward runs inside a backward pass, as activation recomputation does; False in a graph.

    Example:
        >>> is_recomputing()
        False
    """
    return not torch.compiler.is_compiling() and bool(torch._C._current_graph_task_id() != -1)


def once_per_forward(module: nn.Module, change: Callable[[], None]) -> None:
    """Let `change` change the module's buffers, unless this forward is a recomputation.

    A graph cannot tell when it is traced whether it will recompute. There the buffers are changed and, if it does, get
    their old values back.

    Example:
        >>> norm = nn.BatchNorm1d(2)
        >>> once_per_forward(norm, lambda: norm.num_batches_tracked.add_(1))
        >>> norm.num_batches_tracked.item()
        1
    """
    if not torch.compiler.is_compiling():
        if not is_recomputing():
            change()
        return
    before = [buffer.clone() for buffer in module.buffers()]
    change()
    for buffer, old in zip(module.buffers(), before, strict=True):
        buffer.copy_(torch.where(torch.ops.mixtura.recomputes(buffer), old, buffer))


_LIBRARY = torch.library.Library("mixtura", "FRAGMENT")
_LIBRARY.define("recomputes(Tensor like) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))
_LIBRARY.impl(
    "recomputes", lambda like: like.new_full((), is_recomputing(), dtype=torch.bool), "CompositeExplicitAutograd"
)
torch.library.register_fake("mixtura::recomputes", lambda like: like.new_empty((), dtype=torch.bool), lib=_LIBRARY)


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
    return outside_graph(_replayed, router) if _replays else None


def _replayed(router: nn.Module) -> Any:
    return next((block.next(router) for block in reversed(_replays) if router in block.logged), None)
