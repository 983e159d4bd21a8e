"""What a kind of training brings: its data, its loss, what it measures. Everything else is the same for all of them.

A kind is a pair: a `TrainConfig` of its own, which builds the model and reads the data, and a `Task`, which holds the
data once they are read.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from mixtura.train.config import TrainConfig

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Units:
    """The words for what a run counts.

    Attributes:
        loss: of the logged losses.
        items: what a batch consists of.
        group: by what held-out data are told apart.

    Example:
        >>> Units(loss="nats/byte", items="tokens", group="domain").items
        'tokens'
    """

    loss: str
    items: str
    group: str


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a model made of a batch.

    Attributes:
        loss: scalar with its gradient, the mean to be made smaller.
        total: scalar, the loss that is logged, summed over what `weight` counts.
        weight: what `total` is divided by, over all micro-batches of a step.
        items: items in the batch.
        parts: scalars, further means to be logged by name.

    Example:
        >>> Outcome(loss=torch.ones(()), total=torch.tensor(8.0), weight=torch.tensor(8.0), items=8).parts
        {}
    """

    loss: Tensor
    total: Tensor
    weight: Tensor
    items: int
    parts: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def mean(cls, loss: Tensor, items: int, *, parts: Mapping[str, Tensor] | None = None) -> Self:
        """Of a loss that is a mean over the batch's items.

        Example:
            >>> float(Outcome.mean(torch.tensor(0.5), 4).total)
            2.0
        """
        return cls(
            loss=loss, total=loss.detach() * items, weight=loss.new_tensor(items), items=items, parts=parts or {}
        )


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """How good a model is on held-out data.

    Attributes:
        losses: by group; lower is better, and the plain mean of all chooses the best checkpoint.
        scores: further figures by name, in units of their own; higher is better.

    Example:
        >>> Evaluation(losses={"a": 1.0, "b": 2.0}, scores={"accuracy": 0.5}).with_mean()
        {'a': 1.0, 'b': 2.0, 'mean': 1.5}
    """

    losses: Mapping[str, float]
    scores: Mapping[str, float] = field(default_factory=dict)

    def with_mean(self) -> dict[str, float]:
        """The losses, and under "mean" their mean."""
        return {**self.losses, "mean": sum(self.losses.values()) / len(self.losses)}


@dataclass(frozen=True, kw_only=True)
class Said:
    """What a model says of new data.

    Attributes:
        columns: name -> an entry for each row.
        notes: what was counted while the data were read.

    Example:
        >>> Said(columns={"a": [1.0, 2.0]}).notes
        ()
    """

    columns: Mapping[str, Sequence[float | str]]
    notes: Sequence[str] = ()


class Stream(Protocol):
    """Training batches without end, which stop and go on anywhere."""

    def __next__(self) -> Any:
        """The next batch of this rank; it has a method `to(device)`."""

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands, of plain values; the same on every rank."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where another stream stood."""


class Task(ABC):
    """Data that are ready, and what training, evaluation and the report do with them.

    Attributes:
        config: of the run, with those sizes of the model that the data decide.
    """

    config: "TrainConfig"

    @property
    @abstractmethod
    def name(self) -> str:
        """Of the data: a run goes on only with data of the same name."""

    @abstractmethod
    def summary(self) -> Sequence[str]:
        """Lines that tell what the data hold, and what of them is left out."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write what the model needs besides its weights, the tokenizer perhaps, into the run's folder."""

    @abstractmethod
    def stream(self, *, rank: int = 0, world_size: int = 1) -> Stream:
        """Training batches for one of `world_size` ranks, from the beginning."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Any) -> Outcome:
        """The loss of a batch, on the model's device."""

    @abstractmethod
    def evaluate(self, model: nn.Module) -> Evaluation:
        """Held-out losses and scores of a model in evaluation mode, always of the same data."""

    @abstractmethod
    def observe(self, model: nn.Module) -> dict[str, Any]:
        """What the report shows of a model in evaluation mode; see `mixtura.observe.observations`."""


def device_of(model: nn.Module) -> torch.device:
    """Where a model's weights are.

    Example:
        >>> device_of(nn.Linear(1, 1))
        device(type='cpu')
    """
    return next(model.parameters()).device


def autocast(config: "TrainConfig", device: torch.device) -> AbstractContextManager[object]:
    """The context of a forward pass: autocast to bf16, or nothing for fp32.

    Example:
        >>> from mixtura.train.tasks.language import LanguageConfig
        >>> with autocast(LanguageConfig(precision="bf16"), torch.device("cpu")):
        ...     torch.mm(torch.ones(1, 1), torch.ones(1, 1)).dtype
        torch.bfloat16
    """
    if config.precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)
