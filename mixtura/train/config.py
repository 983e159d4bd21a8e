"""A training run as one frozen value. A recipe is a function that returns it; the command line overrides its fields."""

import dataclasses
import types
import typing
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

from mixtura.errors import UserError
from mixtura.train.optim import OptimConfig
from mixtura.train.tasks.task import Said, Say, Task, Units

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

Config = TypeVar("Config")


@dataclass(frozen=True, kw_only=True)
class BalanceConfig:
    """A controller that adjusts each mixture's coefficient of one loss after every step; see `BalanceController`.

    Example:
        >>> BalanceConfig().target
        0.0
    """

    target: float = 0.0
    """Imbalance to reach (largest load of an expert over the mean load), above 1; 0: fixed coefficients."""
    loss: str = "load_balance"
    """The loss whose coefficient moves; its first value is that of the model's losses."""
    rate: float = 0.05
    """Speed: the largest change of the coefficient's logarithm in a step."""


@dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """How many processes share a run, and what each of them has; see docs/parallel.md.

    Raises:
        UserError: a value out of its range.

    Example:
        >>> MeshConfig(dp=2, ep=2).tp
        1
    """

    dp: int = 1
    """Groups of processes with a copy of everything."""
    fsdp: int = 1
    """Processes over which parameters, gradients and optimizer state are cut."""
    ep: int = 1
    """Processes over which the experts are spread."""
    tp: int = 1
    """Processes over which each expert's hidden width is cut."""
    chunks: int = 1
    """Parts in which rows travel to other processes while others are computed."""
    payload: Literal["whole", "bf16", "fp8"] = "whole"
    """Form in which rows travel; whole: as they are."""
    node_size: int = 1
    """Processes along ep on one machine; rows for other machines then go through the own one's. 1: straight."""
    place: bool = False
    """When the run goes on from a checkpoint, place the experts by the loads measured until then."""
    copies: int = 0
    """With place, so many further copies of the busiest experts in each mixture."""
    timeout: float = 600.0
    """Seconds after which a process gives up waiting for another."""

    def __post_init__(self) -> None:
        for name in ("dp", "fsdp", "ep", "tp", "chunks", "node_size"):
            if getattr(self, name) < 1:
                raise UserError(f"mesh.{name}: expected at least 1, got {getattr(self, name)}")
        if self.copies < 0 or (self.copies and not self.place):
            raise UserError(f"mesh.copies: expected at least 0, and mesh.place for more, got {self.copies}")
        if not self.timeout > 0:
            raise UserError(f"mesh.timeout: expected more than 0 seconds, got {self.timeout}")


@dataclass(frozen=True, kw_only=True)
class TrainConfig(ABC):
    """Everything a run depends on, whatever it trains; each kind adds its `model` and its `data`.

    Raises:
        UserError: a value out of its range.

    Example:
        >>> from mixtura.train.tasks.language import LanguageConfig
        >>> LanguageConfig(steps=100).task
        'language'
    """

    task: ClassVar[str]
    """The kind's name in `mixtura.train.tasks.CONFIGS`."""
    units: ClassVar[Units]

    recipe: str = ""
    """Name of the recipe this came from."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    balance: BalanceConfig = field(default_factory=BalanceConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    steps: int = 1000
    """Optimizer steps."""
    accumulate: int = 1
    """Micro-batches per optimizer step."""
    eval_interval: int = 250
    """Steps between evaluations on held-out data."""
    checkpoint_interval: int = 500
    """Steps between checkpoints."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: autocast; routers, losses and the optimizer stay fp32."""
    device: str = "auto"
    """auto (cuda, else mps, else cpu), or a torch device."""
    threads: int = 0
    """CPU threads; 0: as torch chooses."""
    seed: int = 0
    """Of the weights and of all noise."""
    start: str = ""
    """Folder of a run whose best weights this one starts from; empty: fresh ones."""
    out: str = "runs"
    """Folder of all runs."""
    name: str = ""
    """Folder of this run inside `out`; empty: recipe and time."""
    tensorboard: bool = False
    """Also write TensorBoard events; needs mixtura[tensorboard]."""

    def __post_init__(self) -> None:
        for name in ("steps", "accumulate", "eval_interval", "checkpoint_interval"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}: expected at least 1, got {getattr(self, name)}")
        for name in ("threads", "seed"):
            if getattr(self, name) < 0:
                raise UserError(f"{name}: expected at least 0, got {getattr(self, name)}")
        if self.seed >= 1 << 32:
            raise UserError(f"seed: expected less than 2^32, got {self.seed}")
        if {"/", "\\"} & set(self.name) or self.name in (".", "..", "latest"):
            raise UserError(
                f"name: expected the name of one folder, and not 'latest', got {self.name!r}; --out says where it lies"
            )

    def check(self) -> None:  # noqa: B027  # most kinds have nothing more to refuse
        """Refuse what cannot be trained, before any data are read.

        Raises:
            UserError: whatever the kind cannot do.
        """

    @abstractmethod
    def build_model(self) -> "nn.Module":
        """The model with fresh weights: the one place where its configuration becomes objects."""

    @abstractmethod
    def prepare(self, *, on_progress: Say | None = None) -> Task:
        """Read the data."""

    def predict(self, model: "nn.Module", data: str, *, folder: "Path") -> Said:  # noqa: ARG002  # those that can need it
        """What a run's model in evaluation mode says of data without labels.

        Args:
            model: of the run.
            data: a table, a file of texts, a folder of images.
            folder: of the run.

        Raises:
            UserError: a kind without labels, or data that cannot be read.
        """
        raise UserError(f"expected a run that predicts labels, got one of kind {self.task!r}")


def to_dict(config: TrainConfig) -> dict[str, Any]:
    """Plain values for config.json.

    Example:
        >>> from mixtura.train.tasks.language import LanguageConfig
        >>> from_dict(LanguageConfig, to_dict(LanguageConfig(steps=7))).steps
        7
    """
    return dataclasses.asdict(config)


def from_dict(cls: type[Config], values: Mapping[str, Any]) -> Config:
    """Rebuild a nested configuration from `to_dict`'s values.

    Raises:
        UserError: an unknown field, a value of another type, or one that a configuration refuses.

    Example:
        >>> from_dict(OptimConfig, {"lr": 0.5}).lr
        0.5
    """
    if not isinstance(values, Mapping):
        raise UserError(f"expected the fields of {cls.__name__}, got {values!r}")
    hints = {name: kind for name, kind in typing.get_type_hints(cls).items() if name in _fields(cls)}
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise UserError(
            f"expected fields of {cls.__name__}, got {', '.join(unknown)}; was it written by a newer mixtura?"
        )
    arguments = {name: _from_plain(hints[name], value, name=name) for name, value in values.items()}
    try:
        return cls(**arguments)
    except ValueError as error:
        raise UserError(str(error)) from error


def _fields(cls: Any) -> set[str]:
    return {field.name for field in dataclasses.fields(cls)}


def _from_plain(kind: Any, value: Any, *, name: str) -> Any:
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return from_dict(kind, value)
    if typing.get_origin(kind) is tuple and isinstance(value, list):
        value = tuple(value)
    if not _fits(kind, value):
        raise UserError(f"{name}: expected {getattr(kind, '__name__', kind)}, got {value!r}")
    return value


def _fits(kind: Any, value: Any) -> bool:
    """Whether a plain value is of the type that a field is annotated with."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return value in arguments
    if origin in (typing.Union, types.UnionType):
        return any(_fits(argument, value) for argument in arguments)
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(arguments[0], part) for part in value)
    if origin is Mapping:
        return isinstance(value, Mapping) and all(_fits(arguments[1], part) for part in value.values())
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, int | float if kind is float else kind)
