"""Kinds of training, each a configuration and a task: `CONFIGS` finds them by name.

A new kind is one module with two classes, one line in `CONFIGS`, and recipes that return its configuration:

* a `TrainConfig` with its own `model` and `data`, `build_model()` and `prepare()`, which reads the data;
* a `Task` with the data: stream, loss, evaluation, and what the report shows (`panels`, `domains` and `layers` of
  observations.json). `mixtura.train.data.shuffle.ShuffledStream` is a stream that stops and goes on anywhere.

The loop, checkpoints, resuming, processes, reports and the command line then serve it unchanged.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from mixtura.errors import UserError

if TYPE_CHECKING:
    from mixtura.train.config import TrainConfig

    Configs = dict[str, Callable[[], type[TrainConfig]]]


def _language() -> "type[TrainConfig]":
    from mixtura.train.tasks.language import LanguageConfig

    return LanguageConfig


def _tabular() -> "type[TrainConfig]":
    from mixtura.train.tasks.tabular import TabularConfig

    return TabularConfig


# Each is imported only when a run needs it.
CONFIGS: "Configs" = {"language": _language, "tabular": _tabular}


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
    return CONFIGS[task]()
