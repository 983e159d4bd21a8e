"""A training run as one frozen value. A recipe is a function that returns it; the command line overrides its fields."""

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import UnionType
from typing import Any, Literal, TypeVar

from mixtura.errors import UserError
from mixtura.models import GPTConfig
from mixtura.train.data.config import DataConfig

Config = TypeVar("Config")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW with warm-up, cosine decay, and learning rates of their own for routers and experts.

    Raises:
        UserError: a value out of its range.

    Example:
        >>> OptimConfig(lr=1e-3).expert_lr
        1.0
    """

    lr: float = 3e-3
    """Learning rate at its peak."""
    router_lr: float = 1.0
    """Learning rate of the routers, as a multiple of lr."""
    expert_lr: float = 1.0
    """Learning rate of the experts, as a multiple of lr."""
    weight_decay: float = 0.1
    """Decay of all matrices but routers and embeddings."""
    beta1: float = 0.9
    """AdamW's first decay."""
    beta2: float = 0.95
    """AdamW's second decay."""
    warmup: int = 100
    """Steps of linear warm-up."""
    min_lr: float = 0.05
    """Learning rate at the end, as a share of the peak."""
    grad_clip: float = 1.0
    """Largest norm of all gradients together; 0: no clipping."""

    def __post_init__(self) -> None:
        for name in ("lr", "router_lr", "expert_lr"):
            if not getattr(self, name) > 0:
                raise UserError(f"optim.{name}: expected more than 0, got {getattr(self, name)}")
        for name in ("weight_decay", "warmup", "grad_clip"):
            if not getattr(self, name) >= 0:
                raise UserError(f"optim.{name}: expected at least 0, got {getattr(self, name)}")
        for name in ("beta1", "beta2", "min_lr"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"optim.{name}: expected at least 0 and below 1, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything a run depends on.

    Raises:
        UserError: a value out of its range.

    Example:
        >>> TrainConfig(steps=100).optim.lr
        0.003
    """

    recipe: str = "lm-tiny"
    """Name of the recipe this came from."""
    model: GPTConfig = field(default_factory=GPTConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    steps: int = 1000
    """Optimizer steps."""
    accumulate: int = 1
    """Micro-batches per optimizer step."""
    eval_interval: int = 250
    """Steps between evaluations on held-out text."""
    checkpoint_interval: int = 500
    """Steps between checkpoints."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: autocast; routers, losses and the optimizer stay fp32."""
    recompute_interval: int = 0
    """Recompute the activations of every n-th block in the backward pass; 0: keep all."""
    device: str = "auto"
    """auto (cuda, else mps, else cpu), or a torch device."""
    threads: int = 0
    """CPU threads; 0: as torch chooses."""
    seed: int = 0
    """Of the weights and of all noise."""
    out: str = "runs"
    """Folder of all runs."""
    name: str = ""
    """Folder of this run inside `out`; empty: recipe and time."""
    prompts: tuple[str, ...] = ("def ", "import ", "The ", "#define ")
    """Prompts for the texts generated at the end."""
    tensorboard: bool = False
    """Also write TensorBoard events; needs mixtura[tensorboard]."""

    def __post_init__(self) -> None:
        for name in ("steps", "accumulate", "eval_interval", "checkpoint_interval"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}: expected at least 1, got {getattr(self, name)}")
        for name in ("recompute_interval", "threads", "seed"):
            if getattr(self, name) < 0:
                raise UserError(f"{name}: expected at least 0, got {getattr(self, name)}")


def to_dict(config: TrainConfig) -> dict[str, Any]:
    """Plain values for config.json.

    Example:
        >>> from_dict(TrainConfig, to_dict(TrainConfig(steps=7))).steps
        7
    """
    return dataclasses.asdict(config)


def from_dict(cls: type[Config], values: Mapping[str, Any]) -> Config:
    """Rebuild a nested configuration from `to_dict`'s values.

    Raises:
        UserError: an unknown field.

    Example:
        >>> from_dict(OptimConfig, {"lr": 0.5}).lr
        0.5
    """
    hints = typing.get_type_hints(cls)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise UserError(f"expected fields of {cls.__name__}, got {', '.join(unknown)}; was it written by a newer mixtura?")
    return cls(**{name: _from_plain(hints[name], value) for name, value in values.items()})


def _from_plain(kind: Any, value: Any) -> Any:
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return from_dict(kind, value)
    if typing.get_origin(kind) is tuple:
        return tuple(value)
    if isinstance(kind, UnionType) or value is None:
        return value
    return value
