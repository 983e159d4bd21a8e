"""Record the routing of every layer of a model, once per forward, also under activation recomputation."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mixtura.hooks import layer_names, tap
from mixtura.losses.balance import entropy
from mixtura.routing import Routing, Rows


@dataclass(frozen=True)
class LayerRecord:
    """What one layer did in one forward.

    Attributes:
        routing: who went to whom, without its graph.
        kept_E: int64 (E,), rows each expert worked on.

    Example:
        >>> import torch
        >>> p = torch.full((2, 2), 0.5)
        >>> routing = Routing.from_choices(torch.tensor([[0], [0]]), torch.ones(2, 1), logits_TE=p, probs_TE=p)
        >>> record = LayerRecord(routing, torch.tensor([1, 0]))
        >>> record.dropped_share().item(), record.counts_E().tolist(), round(record.entropy().item(), 4)
        (0.5, [2, 0], 0.6931)
    """

    routing: Routing
    kept_E: Tensor

    def counts_E(self) -> Tensor:
        """Assignments of each expert, before any was dropped: int64 (E,)."""
        return self.routing.counts_E()

    def dropped_share(self) -> Tensor:
        """Share of the assignments that no expert had room for: a scalar from 0 to 1."""
        asked = self.counts_E().sum()
        return (asked - self.kept_E.sum()) / asked.clamp(min=1)

    def entropy(self) -> Tensor:
        """Mean entropy of the router's distribution, in nats: a scalar from 0 to log E; 0 without real tokens."""
        return entropy(self.routing)

    def first_choice_T(self) -> Tensor:
        """Each token's best expert, see `Routing.first_choice_T`: int64 (T,)."""
        return self.routing.first_choice_T()


class RoutingLog(dict[str, list[LayerRecord]]):
    """Layer name -> its records, in the order of the forwards.

    Example:
        >>> RoutingLog()
        {}
    """


@contextmanager
def record(model: nn.Module) -> Iterator[RoutingLog]:
    """Inside the block, log what every MoE layer of `model` routes.

    Example:
        >>> import torch
        >>> import mixtura as mx
        >>> layer = mx.MoEConfig(dim=4, hidden=8, num_experts=2, k=1, router="switch").build()
        >>> with mx.record(layer) as log:
        ...     _ = layer(torch.randn(6, 4))
        >>> log[""][0].counts_E().sum().item()
        6
    """
    names, log = layer_names(model), RoutingLog()

    def listen(layer: nn.Module, routing: Routing, rows: Rows) -> None:
        if layer in names:
            log.setdefault(names[layer], []).append(LayerRecord(routing.detach(), rows.counts_E))

    with tap(listen):
        yield log


@torch.no_grad()
def counts_by_group(model: nn.Module, forwards: Mapping[str, Iterable[object]]) -> dict[str, Any]:
    """How often each layer chose each expert, for each group of held-out data.

    Args:
        model: in evaluation mode.
        forwards: by group, forward passes that are made while this is iterated over.

    Returns:
        "domains" and "layers" of observations.json.

    Example:
        >>> counts_by_group(nn.Identity(), {"a": [], "b": []})
        {'domains': ['a', 'b'], 'layers': {}}
    """
    layers: dict[str, dict[str, list[list[int]]]] = {}
    for passes in forwards.values():
        with record(model) as log:
            for _ in passes:
                pass
        for name, records in log.items():
            counts_E = torch.stack([r.counts_E() for r in records]).sum(0)
            layers.setdefault(name, {"counts": []})["counts"].append(counts_E.tolist())
    return {"domains": list(forwards), "layers": layers}
