"""Tasks in a row, of which each hands what it found on to the next (AITM)."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Unpack

import torch
from torch import Tensor, nn

from mixtura.errors import UserError
from mixtura.losses.apply import enter
from mixtura.multitask.models import MultiTask, Options
from mixtura.multitask.tasks import Prediction, Task


class Transfer(nn.Module):
    """What a task's tower sees: its own vector and the one handed to it, by attention between the two.

    Args:
        dim: D, width of both.

    Shapes:
        query.weight, key.weight, value.weight: (D, D). hand[0]: the layer that the vector passes when it is handed on.

    Example:
        >>> mixed, weight = Transfer(4)(torch.zeros(3, 4), torch.zeros(3, 4))
        >>> mixed.shape, weight.shape
        (torch.Size([3, 4]), torch.Size([3, 2]))
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.hand = nn.Sequential(nn.Linear(dim, dim), nn.ReLU())
        self.query, self.key, self.value = (nn.Linear(dim, dim, bias=False) for _ in range(3))

    def forward(self, own_BD: Tensor, before_BD: Tensor) -> tuple[Tensor, Tensor]:
        """Mix: (B, D) twice -> (B, D), and the weights of own and handed vector (B, 2)."""
        x_B2D = torch.stack([own_BD, self.hand(before_BD)], 1)
        score_B2 = (self.query(x_B2D) * self.key(x_B2D)).sum(-1) * x_B2D.shape[-1] ** -0.5
        weight_B2 = score_B2.softmax(-1)
        return (weight_B2.unsqueeze(1) @ self.value(x_B2D)).squeeze(1), weight_B2


class AITM(MultiTask):
    """A network for each task, and in the order of the tasks each hands its vector on to the next.

    For events of which one leads to the next (click, application, approval). In training a later event's probability
    should not exceed that of the one before it: the mean of what it does so by, times `calibrator`, is a loss.
    Source: Xi et al. 2021 (Modeling the sequential dependence among audience multi-step conversions).

    Args:
        encoder: see `MultiTask`.
        tasks: in the order of the events; see `MultiTask`.
        network: widths of the layers of each task's own network.
        calibrator: coefficient of that loss, of every binary task that follows a binary one; 0: none.
        options: see `MultiTask`: dim, tower, dropout.

    Raises:
        UserError: a negative calibrator.

    Example:
        >>> model = AITM(None, tasks=[Task(name="click"), Task(name="buy")], network=(16,), dim=4)
        >>> said = model(torch.zeros(3, 4))
        >>> said.gates[0]["buy"].shape, model.experts_of("buy"), model.experts_of("click")
        (torch.Size([3, 2]), ['own', 'from click'], [])
    """

    def __init__(
        self,
        encoder: nn.Module | None,
        *,
        tasks: Sequence[Task],
        network: Sequence[int] = (64,),
        calibrator: float = 0.6,
        **options: Unpack[Options],
    ) -> None:
        if not calibrator >= 0:
            raise UserError(f"expected a calibrator of at least 0, got {calibrator}")
        names = [task.name for task in tasks]
        alone: dict[str | None, tuple[str | None, ...]] = {name: (name,) for name in names}
        source = dict(zip(names, names, strict=True))
        super().__init__(
            encoder, tasks=tasks, plan=[(dict.fromkeys(alone, 1), alone)], source=source, expert=network, **options
        )
        self.calibrator = calibrator
        self.transfers = nn.ModuleList(Transfer(self.tower_dim) for _ in names[1:])

    def between(self, state: Mapping[str | None, Tensor]) -> tuple[dict[str | None, Tensor], dict[str, Tensor]]:
        """Hand on: what the towers see, and how much of it is a task's own."""
        mixed, weights = dict(state), {}
        for (before, task), transfer in zip(pairwise(self.tasks), self.transfers, strict=True):
            mixed[task.name], weights[task.name] = transfer(state[task.name], mixed[before.name])
        return mixed, weights

    def experts_of(self, task: str, *, level: int = -1) -> list[str]:
        """What `Prediction.gates[level][task]` weighs: the task's own vector and the one handed to it."""
        super().experts_of(task, level=level)
        place = list(self.source).index(task)
        return ["own", f"from {self.tasks[place - 1].name}"] if place else []

    def forward(self, *inputs: Tensor) -> Prediction:
        """Predict every task: what the encoder takes -> `Prediction`."""
        said, scores = super().forward(*inputs), {}
        if not (self.calibrator and self.training and torch.is_grad_enabled()):
            return said
        for before, task in pairwise(self.tasks):
            if before.kind == task.kind == "binary" and len(said.scores[task.name]):
                score = said.scores[task.name]
                excess = (score.sigmoid() - said.scores[before.name].sigmoid()).relu().mean()
                scores[task.name] = enter(self, score, {"excess": excess}, coefficients={"excess": self.calibrator})
        return replace(said, scores={**said.scores, **scores})
