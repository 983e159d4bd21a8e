"""The module that a run on a table trains: encoder, multi-task model, and the balance of its losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

from torch import Tensor, nn

from mixtura.errors import UserError
from mixtura.multitask.balance import BALANCES, Balance, GradNorm
from mixtura.multitask.encoder import TableEncoder
from mixtura.multitask.mixing import MakeGate
from mixtura.multitask.models import PLE, MixtureOptions, MMoE, MultiTask, OMoE, Options, SharedBottom
from mixtura.multitask.tasks import Prediction, Task
from mixtura.multitask.transfer import AITM
from mixtura.routers.dense import Dense
from mixtura.routers.topk import Switch, TopK


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """The model's form; what stands below `balance` comes from the table.

    Raises:
        UserError: a balance that does not exist, or not one weight per label.

    Example:
        >>> NetworkConfig(num_experts=4, expert=(16,)).build().network.experts_of("label")
        ['shared 0', 'shared 1', 'shared 2', 'shared 3']
    """

    architecture: Literal["mmoe", "ple", "omoe", "shared_bottom", "aitm"] = "mmoe"
    """A gate per task, experts per task beside shared ones, one gate, one network for all tasks, or a network for each
    of which hands on to the next."""
    num_experts: int = 8
    """Experts that all tasks share, of each level."""
    task_experts: int = 2
    """ple: experts of each task's own, of each level."""
    levels: int = 1
    """mmoe and ple: levels of experts."""
    k: int = 0
    """Experts that a gate chooses for a row; 0: all of them, by weight."""
    expert: tuple[int, ...] = (64, 32)
    """Widths of each expert's layers; of shared_bottom: those of the bottom; of aitm: of each task's network."""
    tower: tuple[int, ...] = (16,)
    """Widths of the hidden layers of each task's tower."""
    embedding: int = 8
    """Width of a category's embedding."""
    dropout: float = 0.1
    """Share of hidden units set to 0 in training."""
    input_dropout: float = 0.05
    """Share of inputs set to 0 in training."""
    balance: Literal["fixed", "uncertainty", "gradnorm"] = "fixed"
    """How the tasks' losses become one."""
    calibrator: float = 0.6
    """aitm: coefficient of a later event's probability above that of the one before."""
    after: tuple[str, ...] = ()
    """LATER:EARLIER of two binary labels: without the earlier event the later one cannot be, and its probability is the
    earlier one's times what its tower says (ESMM). The earlier label stands first."""
    weights: tuple[float, ...] = ()
    """Weight of each label's loss, in their order; empty: 1."""
    cardinalities: tuple[int, ...] = ()
    """From the table: categories of each categorical column."""
    numbers: int = 0
    """From the table: numeric inputs."""
    names: tuple[str, ...] = ()
    """From the table: labels."""
    kinds: tuple[str, ...] = ()
    """From the table: binary, multiclass or regression, of each label."""
    classes: tuple[int, ...] = ()
    """From the table: classes of each label."""

    OF_TABLE: ClassVar[tuple[str, ...]] = ("cardinalities", "numbers", "names", "kinds", "classes")

    def __post_init__(self) -> None:
        if self.names and self.weights and len(self.weights) != len(self.names):
            raise UserError(f"model.weights: expected one for each of {', '.join(self.names)}, got {self.weights}")
        if self.k < 0:
            raise UserError(f"model.k: expected at least 0, got {self.k}")
        self.conditions()

    def conditions(self) -> dict[str, str]:
        """Later label -> the earlier one that it needs; before a table is read, none.

        Raises:
            UserError: no two labels of the table.
        """
        pairs = {f"{later}:{earlier}": (later, earlier) for later in self.names for earlier in self.names}
        for text in self.after if self.names else ():
            if text not in pairs:
                raise UserError(f"model.after: expected LATER:EARLIER of {', '.join(self.names)}, got {text!r}")
        return dict(pairs[text] for text in self.after if self.names)

    def tasks(self) -> list[Task]:
        """The tasks; before a table is read, one."""
        if not self.names:
            return [Task(name="label")]
        weights, after = self.weights or (1.0,) * len(self.names), self.conditions()
        labels = zip(self.names, self.kinds, self.classes, weights, strict=True)
        return [
            Task(name=n, kind=k, classes=c, weight=w, after=after.get(n))  # type: ignore[arg-type]  # of a config.json
            for n, k, c, w in labels
        ]

    def build(self) -> TabularModel:
        """The model with fresh weights; before a table is read, of one numeric column."""
        numbers = self.numbers if self.names else 1
        return TabularModel.of(self, tasks=self.tasks(), numbers=numbers)


class TabularModel(nn.Module):
    """A multi-task model on a table's rows, and how its losses become one, whose parameters learn beside it.

    Args:
        network: the model.
        balance: of its tasks' losses.
    """

    def __init__(self, network: MultiTask, balance: Balance) -> None:
        super().__init__()
        self.network, self.balance = network, balance

    @classmethod
    def of(cls, config: NetworkConfig, *, tasks: Sequence[Task], numbers: int) -> TabularModel:
        """The model of a configuration."""
        encoder = TableEncoder(
            config.cardinalities, numbers=numbers, width=config.embedding, dropout=config.input_dropout
        )
        return cls(_network(config, encoder, tasks), BALANCES[config.balance](tasks))

    def forward(self, categories_BC: Tensor, numbers_BM: Tensor) -> Prediction:
        """Predict every label."""
        said: Prediction = self.network(categories_BC, numbers_BM)
        return said

    def total(self, losses: Mapping[str, Tensor]) -> Tensor:
        """One loss of all tasks' losses."""
        shared = self.network.shared_parameters() if isinstance(self.balance, GradNorm) else ()
        total: Tensor = self.balance(losses, shared=shared)
        return total


def _network(config: NetworkConfig, encoder: TableEncoder, tasks: Sequence[Task]) -> MultiTask:
    plain: Options = {"tower": config.tower, "dropout": config.dropout}
    if config.architecture == "shared_bottom":
        return SharedBottom(encoder, tasks=tasks, bottom=config.expert, **plain)
    if config.architecture == "aitm":
        return AITM(encoder, tasks=tasks, network=config.expert, calibrator=config.calibrator, **plain)
    gate: MakeGate = Dense
    if config.k:
        gate = Switch if config.k == 1 else partial(TopK, k=config.k)
    options: MixtureOptions = {
        "expert": config.expert,
        "tower": config.tower,
        "dropout": config.dropout,
        "gate": gate,
    }
    if config.architecture == "omoe":
        return OMoE(encoder, tasks=tasks, num_experts=config.num_experts, **options)
    if config.architecture == "mmoe":
        return MMoE(encoder, tasks=tasks, num_experts=config.num_experts, levels=config.levels, **options)
    sizes = {"shared_experts": config.num_experts, "task_experts": config.task_experts, "levels": config.levels}
    return PLE(encoder, tasks=tasks, **sizes, **options)
