"""Kinds of training, each a configuration and a task: `CONFIGS` finds them by name.

A new kind is one module with two classes, one line in `CONFIGS`, and recipes that return its configuration:

* a `TrainConfig` with its own `model` and `data`, `build_model()` and `prepare()`, which reads the data;
* a `Task` with the data: stream, loss, evaluation, and what the report shows (`panels`, `domains` and `layers` of
  observations.json). `mixtura.train.data.shuffle.ShuffledStream` is a stream that stops and goes on anywhere.

The loop, checkpoints, resuming, processes, reports and the command line then serve it unchanged.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from mixtura.errors import UserError

if TYPE_CHECKING:
    from mixtura.train.config import TrainConfig

# Each is a module here, imported only when a run needs it; `language` holds `LanguageConfig`.
CONFIGS = ("language", "classification", "tabular", "vision", "generation", "detection", "translation")


def find_config(task: str) -> "type[TrainConfig]":
    """The configuration of a kind of training.

    Raises:
        UserError: there is no such kind.

    Example:
        >>> find_config("language").task
        'language'
    """
    if task not in CONFIGS:
        raise UserError(f"expected a task among {', '.join(CONFIGS)}, got {task!r}; was it written by a newer mixtura?")
    config: type[TrainConfig] = getattr(import_module(f"mixtura.train.tasks.{task}"), f"{task.capitalize()}Config")
    return config
