"""Runs that begin with another run's weights: fine-tuning."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import nn

from mixtura.errors import UserError
from mixtura.train.checkpoint import find_checkpoint, load_weights, shapes_of
from mixtura.train.config import TrainConfig
from mixtura.train.run import open_run
from mixtura.train.tasks.task import Task

_STEPS, _LR, _WARMUP, _DROPOUT = 500, 0.3, 20, 0.1


def finetuned(path: str | Path) -> TrainConfig:
    """The configuration of a run that goes on from another one's best weights on other data.

    It is that of the other run with 500 steps, 0.3 times its learning rate, a short warm-up, and the dropout inside the
    experts without which mixtures overfit small data sooner than dense models (Zoph et al. 2022, ST-MoE, section 5.3).

    Raises:
        UserError: no such run.
    """
    run = open_run(path)
    config = run.read_config()
    changes: dict[str, Any] = {
        "start": str(run.folder.absolute()),
        "name": "",
        "steps": _STEPS,
        "eval_interval": _STEPS // 5,
        "checkpoint_interval": _STEPS // 2,
        "optim": replace(config.optim, lr=config.optim.lr * _LR, warmup=_WARMUP),
    }
    given: Mapping[str, Any] = vars(config)
    if hasattr(given["model"], "dropout"):
        changes["model"] = replace(given["model"], dropout=max(_DROPOUT, given["model"].dropout))
    if run.tokenizer.exists():
        changes["data"] = replace(given["data"], tokenizer=str(run.tokenizer.absolute()))
    return replace(config, **changes)


def start_from(model: nn.Module, task: Task) -> None:
    """Give a model the best weights of the run that its configuration names, if it names one.

    Raises:
        UserError: that run is of another kind, has other sizes, or knows other tokens or classes.
    """
    start = task.config.start
    if not start:
        return
    run = open_run(start)
    if (kind := run.read_config().task) != task.config.task:
        raise UserError(f"expected a run of the kind {task.config.task} to start from, got {start!r} of kind {kind}")
    with TemporaryDirectory() as folder:
        task.save(Path(folder))
        for file in sorted(Path(folder).iterdir()):
            theirs = run.folder / file.name
            if not theirs.exists() or theirs.read_bytes() != file.read_bytes():
                raise UserError(
                    f"expected data with the {file.name} of {start!r}, got another; `mixtura finetune` uses that run's"
                )
    checkpoint = find_checkpoint(run, "best")
    own = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    for name, shape in shapes_of(checkpoint).items():
        if own.get(name) != shape:
            raise UserError(
                f"expected a model of the sizes of {start!r}, got {own.get(name, 'none')} for {name} of {shape}; "
                f"`mixtura finetune` takes them from that run"
            )
    load_weights(model, checkpoint)
