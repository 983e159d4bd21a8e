"""Replay a recorded routing: the same choices again, with live weights.

For reinforcement learning (the trainer follows the choices of the rollout) and for recomputation that must not choose
anew. `record` logs, `replay` follows; the gradient reaches the router through the weights of the logged choices.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol

from torch import nn

from mixtura.errors import UserError
from mixtura.hooks import layer_names, replaying
from mixtura.routing import Routing


class Logged(Protocol):
    """What a log holds of one forward of a layer: at least its routing.

    Example:
        >>> from mixtura.observe.record import LayerRecord
        >>> "routing" in LayerRecord.__dataclass_fields__
        True
    """

    @property
    def routing(self) -> Routing:
        """Who went to whom."""


@contextmanager
def replay(model: nn.Module, log: Mapping[str, Sequence[Logged]]) -> Iterator[None]:
    """Inside the block every layer of `model` that `log` names chooses as it did then; the weights are computed anew.

    Call `backward` inside the block too if activations are recomputed. `torch.utils.checkpoint` can also replay its own
    forward: `context_fn` returns `(record(model), replay(model, log))` around one shared log.

    Args:
        model: the model, or a copy of it with other weights.
        log: layer name -> its records in the order of the forwards, as `mixtura.record` gives.

    Raises:
        UserError: a name of the log that is no MoE layer of the model; more forwards than were recorded, or other
            numbers of tokens.

    Example:
        >>> import torch
        >>> import mixtura as mx
        >>> layer, x = mx.MoEConfig(dim=4, hidden=8, num_experts=4, k=1, router="switch").build(), torch.randn(6, 4)
        >>> with mx.record(layer) as log:
        ...     _ = layer(x)
        >>> _ = torch.nn.init.normal_(layer.router.weight)
        >>> with mx.replay(layer, log), mx.record(layer) as again:
        ...     _ = layer(x)
        >>> torch.equal(log[""][0].routing.expert_N, again[""][0].routing.expert_N)
        True
    """
    layers = {name: module for module, name in layer_names(model).items()}
    logged = {}
    for name, records in log.items():
        router = getattr(layers.get(name), "router", None)
        if router is None:
            raise UserError(f"expected a log of MoE layers of this model, got the name {name!r}")
        logged[router] = [record.routing for record in records]
    with replaying(logged):
        yield
