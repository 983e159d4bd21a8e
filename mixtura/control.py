"""A feedback controller: each layer's loss coefficient follows the layer's own imbalance."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mixtura.errors import UserError
from mixtura.layer import MoE
from mixtura.ranks import ProcessGroup, sum_over_ranks
from mixtura.replays import Logged


class BalanceController:
    """Adjust one loss's coefficient in each layer, once per optimizer step, towards a target imbalance.

    Imbalance is the largest expert's load over the mean load, 1 if all are equal, counted over all micro-batches and
    ranks of the step. The logarithm of the coefficient follows the logarithm of imbalance / target (an integral
    controller): c <- c * exp(rate * clamp(log(imbalance / target), -1, 1)), within bounds. So a balance loss disturbs
    the task no more than is needed, and a router that drifts is met with more of it.

    Args:
        model: its layers that have this loss are controlled, each by itself, starting from the coefficient it has.
        loss: the name of the loss.
        target: imbalance to reach, above 1.
        rate: speed; at 0.05 a coefficient doubles in about 14 steps while the imbalance is e times the target.
        bounds: smallest and largest coefficient.

    Raises:
        UserError: no layer has the loss with a positive coefficient, a target not above 1, a rate or bounds that are
            not positive, or, in `step`, no forward of a controlled layer.

    Example:
        >>> import mixtura as mx
        >>> losses = {"load_balance": 0.01}
        >>> layer = mx.MoEConfig(dim=4, hidden=8, num_experts=4, router="switch", losses=losses).build()
        >>> controller = BalanceController(layer, target=1.2)
        >>> with mx.record(layer) as log:
        ...     _ = layer(torch.ones(8, 4))  # equal tokens all go to one expert
        >>> controller.step(log)
        {'': 4.0}
        >>> layer.losses["load_balance"] > 0.01
        True
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        loss: str = "load_balance",
        target: float = 1.5,
        rate: float = 0.05,
        bounds: tuple[float, float] = (1e-5, 1.0),
    ) -> None:
        if not target > 1:
            raise UserError(f"expected a target imbalance (largest load over mean) above 1, got {target}")
        if not rate > 0:
            raise UserError(f"expected a rate above 0, got {rate}")
        if not 0 < bounds[0] <= bounds[1]:
            raise UserError(f"expected bounds with 0 < smallest <= largest coefficient, got {bounds}")
        self._layers = {
            name: layer
            for name, layer in model.named_modules()
            if isinstance(layer, MoE) and layer.losses.get(loss, 0.0) > 0
        }
        if not self._layers:
            raise UserError(f"expected a model with layers whose losses hold {loss!r} above 0, got none")
        self.loss, self.target, self.rate, self.bounds = loss, target, rate, bounds

    def step(self, log: Mapping[str, Sequence[Logged]], *, group: ProcessGroup | None = None) -> dict[str, float]:
        """Move every coefficient by what the layers routed in this optimizer step; reads the device once.

        A layer that routed nothing (padding alone) keeps its coefficient.

        Args:
            log: of `mixtura.record` around the step's forwards.
            group: the ranks to sum the counts over; None: all of them.

        Returns:
            The imbalance of each layer that routed something.
        """
        if missing := sorted(self._layers.keys() - log.keys()):
            raise UserError(
                f"expected a log with a forward of every controlled layer, got none of {missing[0]!r}; "
                "put mixtura.record(model) around the forwards of the step"
            )
        counts = [torch.stack([r.routing.counts_E() for r in log[name]]).sum(0) for name in self._layers]
        counts_by_layer = _sum_and_read(counts, group=group)
        seen = {}
        for (name, layer), counts_e in zip(self._layers.items(), counts_by_layer, strict=True):
            if total := sum(counts_e):
                seen[name] = max(counts_e) * len(counts_e) / total
                layer.losses[self.loss] = self._moved(layer.losses[self.loss], seen[name])
        return seen

    def _moved(self, coefficient: float, imbalance: float) -> float:
        error = math.log(imbalance / self.target)
        moved = coefficient * math.exp(self.rate * max(-1.0, min(1.0, error)))
        return max(self.bounds[0], min(self.bounds[1], moved))

    def coefficients(self) -> dict[str, float]:
        """The coefficient of each layer now."""
        return {name: layer.losses[self.loss] for name, layer in self._layers.items()}

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs, so that a resumed run goes on with the same coefficients."""
        return {"loss": self.loss, "coefficients": self.coefficients()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Set the layers' coefficients to those of `state_dict`.

        Raises:
            UserError: the state is of another loss, or of other layers.
        """
        coefficients = state["coefficients"]
        if state["loss"] != self.loss or coefficients.keys() != self._layers.keys():
            raise UserError(
                f"expected the state of a controller of {self.loss!r} in the layers {sorted(self._layers)}, "
                f"got that of {state['loss']!r} in {sorted(coefficients)}"
            )
        for name, layer in self._layers.items():
            layer.losses[self.loss] = coefficients[name]


def _sum_and_read(counts: Sequence[Tensor], *, group: ProcessGroup | None) -> list[list[int]]:
    """Sum the counts of all layers over the ranks in one go, and read them in one go."""
    sizes = [counts_E.shape[0] for counts_E in counts]
    device = counts[0].device
    flat: list[int] = sum_over_ranks(torch.cat([counts_E.to(device) for counts_E in counts]), group=group).tolist()
    ends = [sum(sizes[: place + 1]) for place in range(len(sizes))]
    return [flat[end - size : end] for end, size in zip(ends, sizes, strict=True)]
