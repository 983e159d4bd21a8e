"""Surgery on runs: a run's model changed, and written as a new run that can be evaluated and trained on."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mixtura.errors import UserError
from mixtura.models.count import count_parameters
from mixtura.models.gpt import GPT, GPTConfig
from mixtura.surgery.layers import grouped, mixtures
from mixtura.surgery.moefy import moefy
from mixtura.surgery.prune import Measure, prune
from mixtura.train.progress import say
from mixtura.train.run import Run, create_run, open_run
from mixtura.train.step import evaluate
from mixtura.train.tasks.language import LanguageConfig, LanguageTask
from mixtura.train.tasks.task import device_of


@dataclass(frozen=True, kw_only=True)
class Next:
    """What becomes of a model that was made from another run's.

    Raises:
        UserError: a negative number.

    Example:
        >>> Next(name="sparse", steps=100).lr
        0.0
    """

    name: str
    """Folder of the new run, beside the old one."""
    steps: int = 0
    """Train for so many steps at once; 0: not yet, and then for as many as the old run had."""
    lr: float = 0.0
    """Learning rate at its peak; 0: that of the old run."""
    checkpoint: str = "best"
    """Of the old run: best, last, or the step of a checkpoint."""

    def __post_init__(self) -> None:
        if self.steps < 0 or self.lr < 0:
            raise UserError(f"expected steps and lr of at least 0, got steps={self.steps} and lr={self.lr}")

    def config(self, config: LanguageConfig, *, out: Path, model: GPTConfig) -> LanguageConfig:
        """The new run's configuration."""
        optim = replace(config.optim, lr=self.lr or config.optim.lr)
        return replace(config, model=model, optim=optim, steps=self.steps or config.steps, out=str(out), name=self.name)


def load(run: Run, *, checkpoint: str) -> tuple[GPT, LanguageConfig]:
    """A language run's model and configuration; see `mixtura.train.inspect.load_model`."""
    from mixtura.train.inspect import load_language_model  # late: chains of imports stay short

    return load_language_model(run, checkpoint=checkpoint)


def train_on(run: Run) -> GPT:
    """Train a run to its last step; returns its best model."""
    from mixtura.train.loop import resume  # late: chains of imports stay short

    resume(run.folder)
    return load(run, checkpoint="best")[0]


def derive(state: Mapping[str, Tensor], task: LanguageTask) -> tuple[Run, GPT]:
    """A new run whose model has these weights, at step 0, with a fresh optimizer; and the model.

    Raises:
        UserError: the run exists already, or cannot be written.
    """
    from mixtura.train.loop import begin  # late: chains of imports stay short

    model = task.config.build_model()
    model.load_state_dict(state)
    device = next(iter(state.values())).device
    run = create_run(task.config, parameters=count_parameters(model), save=task.save, device=device)
    begin(run, model.to(device), task)
    return run, model


def held_out(model: nn.Module, task: LanguageTask) -> dict[str, float]:
    """Nats per byte by domain, and their mean; see `evaluate`."""
    return evaluate(model, task).with_mean()


def upcycle_run(
    path: str | Path,
    following: Next,
    *,
    num_experts: int = 8,
    k: int = 2,
    init: str = "upcycle",
    router: str = "topk",
    every: int = 1,
) -> Path:
    """Make a dense run's model sparse, see `moefy`, and write it as a new run; returns its folder.

    Raises:
        UserError: the run's model has mixtures already; an init that needs inputs gets the run's training text.
    """
    run = open_run(path)
    model, config = load(run, checkpoint=following.checkpoint)
    if config.model.num_experts:
        raise UserError(f"expected a dense run, got {str(path)!r} with {config.model.num_experts} experts")
    task = config.prepare(on_progress=say)
    before = held_out(model, task)
    moefy(
        model,
        "*.feed_forward",
        num_experts=num_experts,
        k=k,
        init=init,
        router=router,
        every=every,
        data=text_batches(task, count=8, device=device_of(model)),
    )
    hidden = next(grouped(layer).hidden for layer in mixtures(model).values())
    sizes = replace(
        config.model,
        num_experts=num_experts,
        k=k,
        router=router,
        router_options={},
        moe_every=every,
        hidden=hidden,
        dense_hidden=config.model.hidden,
    )
    config = following.config(config, out=run.folder.parent, model=sizes)
    return _finish(model, before, LanguageTask(config, task.corpus), following=following)


def prune_run(
    path: str | Path,
    following: Next,
    *,
    keep: float = 0.5,
    by: Measure = "reap",
    k: int = 0,
    batches: int = 16,
) -> Path:
    """Take the experts that matter least out of a run's model, see `prune`, and write a new run; returns its folder.

    Args:
        path: the run's folder.
        following: what becomes of it.
        keep: see `prune`.
        by: see `prune`.
        k: choices per token from now on; 0: as before.
        batches: of the run's training text, to measure on.

    Raises:
        UserError: see `prune`.
    """
    run = open_run(path)
    model, config = load(run, checkpoint=following.checkpoint)
    task = config.prepare(on_progress=say)
    before = held_out(model, task)
    data = text_batches(task, count=batches, device=device_of(model))
    kept = prune(model, keep, by=by, data=data, k=k or None)
    for name, numbers in kept.items():
        say(f"{name}: kept experts {', '.join(map(str, numbers))}")
    number = len(next(iter(kept.values())))
    sizes = replace(config.model, num_experts=number, k=k or config.model.k)
    config = following.config(config, out=run.folder.parent, model=sizes)
    return _finish(model, before, LanguageTask(config, task.corpus), following=following)


def _finish(model: GPT, before: Mapping[str, float], task: LanguageTask, *, following: Next) -> Path:
    """Write the new run, train it if wished, and say what it has become."""
    new, _ = derive(model.state_dict(), task)
    rows = {"before": before, "after": held_out(model, task)}
    if following.steps:
        rows["trained"] = held_out(train_on(new), task)
    say(table(rows))
    return new.folder


def text_batches(task: LanguageTask, *, count: int, device: torch.device) -> list[Tensor]:
    """Windows of training text that a run starts with: `count` tensors of ids (B, L)."""
    stream = task.stream()
    return [next(stream).inputs_BL.to(device) for _ in range(count)]


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Losses as a Markdown table: one row per model, one column per domain.

    Example:
        >>> print(table({"seed": {"python": 1.5, "mean": 1.5}}))
        | nats per byte | python | mean |
        |---|---|---|
        | seed | 1.5000 | 1.5000 |
    """
    columns = list(next(iter(rows.values())))
    lines = [["nats per byte", *columns], ["---"] * (1 + len(columns))]
    text = [f"| {' | '.join(lines[0])} |", f"|{'|'.join(lines[1])}|"]
    for name, losses in rows.items():
        text.append(f"| {' | '.join([name, *(f'{losses[column]:.4f}' for column in columns)])} |")
    return "\n".join(text)
