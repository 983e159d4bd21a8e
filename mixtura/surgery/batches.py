"""Run a model over some batches, to see what its parts are given."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mixtura.errors import UserError
from mixtura.hooks import tap
from mixtura.layer import MoE
from mixtura.routing import Routing, Rows


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients inside the block; each module's own mode again after it.

    Example:
        >>> layer = nn.Linear(1, 1)
        >>> with evaluating(layer):
        ...     layer.training
        False
        >>> layer.training
        True
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def call(model: nn.Module, batch: Any) -> Any:
    """Call a model with a batch: a mapping gives keyword arguments, a tuple or list positional ones.

    Example:
        >>> call(nn.Bilinear(1, 1, 1), (torch.ones(2, 1), torch.ones(2, 1))).shape
        torch.Size([2, 1])
    """
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(*batch) if isinstance(batch, tuple | list) else model(batch)


def inputs_of(
    model: nn.Module, names: Sequence[str], data: Iterable[Any], *, max_tokens: int = 4096
) -> dict[str, Tensor]:
    """What some modules of a model are given, in evaluation: by name, (T, D), at most the first `max_tokens`.

    Raises:
        UserError: no batch, or a module that the batches do not reach.

    Example:
        >>> inputs_of(nn.Sequential(nn.ReLU(), nn.Linear(2, 2)), ["1"], [torch.tensor([[-1.0, 1.0]])])
        {'1': tensor([[0., 1.]])}
    """
    seen: dict[str, list[Tensor]] = {name: [] for name in names}

    def hear(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            if sum(map(len, seen[name])) < max_tokens:
                seen[name].append(arguments[0].detach().flatten(0, -2))

        return hook

    handles = [model.get_submodule(name).register_forward_pre_hook(hear(name)) for name in names]
    try:
        with evaluating(model):
            for batch in data:
                call(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    if missed := [name for name, parts in seen.items() if not parts]:
        raise UserError(f"expected data that reaches {', '.join(missed)}, got no batch that does")
    return {name: torch.cat(parts)[:max_tokens] for name, parts in seen.items()}


def watch(model: nn.Module, data: Iterable[Any], listener: Callable[[MoE, Routing, Rows], None]) -> None:
    """Run batches in evaluation and let the listener see what every mixture routes.

    Raises:
        UserError: no batch reaches a mixture.

    Example:
        >>> import mixtura as mx
        >>> layer = mx.MoEConfig(dim=4, hidden=8, num_experts=2).build()
        >>> watch(layer, [torch.zeros(3, 4)], lambda layer, routing, rows: print(routing.num_tokens))
        3
    """
    heard = []

    def hear(layer: nn.Module, routing: Routing, rows: Rows) -> None:
        assert isinstance(layer, MoE)
        heard.append(layer)
        listener(layer, routing, rows)

    with evaluating(model), tap(hear):
        for batch in data:
            call(model, batch)
    if not heard:
        raise UserError("expected data= with a batch that reaches a mixture, got none")
