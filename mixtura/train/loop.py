"""The training loop: from a configuration to a run's folder with metrics, checkpoints and a report."""

import shutil
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mixtura.control import BalanceController
from mixtura.errors import UserError
from mixtura.models.count import count_parameters
from mixtura.train.checkpoint import find_checkpoint, go_back, list_checkpoints, load_state
from mixtura.train.config import MeshConfig, TrainConfig
from mixtura.train.device import choose_device, keep_freed_memory, random_state, set_random_state
from mixtura.train.metrics import lines_up_to, measure, number
from mixtura.train.observations import finish
from mixtura.train.progress import say
from mixtura.train.reports import Reports
from mixtura.train.run import Run, create_run, new_run_folder, open_run
from mixtura.train.setup import build_controller, build_model, check_start, require_for_training
from mixtura.train.step import evaluate, train_step
from mixtura.train.tasks.task import Stream, Task
from mixtura.train.world import World, processes, restarted


@dataclass(frozen=True, kw_only=True)
class Counters:
    """How far a run is; stored in every checkpoint.

    Example:
        >>> Counters().step
        0
    """

    step: int = 0
    items: int = 0
    seconds: float = 0.0
    best_step: int = 0
    best_loss: float = float("inf")

    def after_step(self, *, items: int, seconds: float) -> "Counters":
        """One step further."""
        return replace(self, step=self.step + 1, items=self.items + items, seconds=self.seconds + seconds)

    def row(self) -> dict[str, Any]:
        """What a row of metrics tells of them."""
        return {"step": self.step, "items": self.items, "seconds": round(self.seconds, 4)}


def train(config: TrainConfig) -> Path:
    """Train from the start; returns the run's folder. Processes that torchrun starts again go on where they were.

    Raises:
        UserError: anything wrong with the configuration, the data, or the disk.
        KeyboardInterrupt: after a Ctrl-C, with a checkpoint saved.
    """
    from mixtura.train.start import start_from  # late, as in `_train`

    check_start(config)
    if restarted() and config.name and list_checkpoints(known := Run(Path(config.out, config.name))):
        return resume(known.folder)
    with processes(config) as world:
        if world.is_first and restarted() and config.name:
            # What failed before its first checkpoint has left nothing to go on from.
            shutil.rmtree(Path(config.out, config.name), ignore_errors=True)
        if world.is_first:
            new_run_folder(config)
        keep_freed_memory()
        device = choose_device(config.device, threads=config.threads)
        task = _prepare(config, world)
        config = task.config
        torch.manual_seed(config.seed)
        model = build_model(config)
        start_from(model, task)
        model = model.to(device)
        count = count_parameters(model)
        if world.is_first:
            run = create_run(config, parameters=count, save=task.save, device=device)
            for line in task.summary():
                say(line)
            say(f"{run.folder}: {count.total:,} parameters, {count.active:,} active")
        run = world.same(run if world.is_first else Run(Path()))
        _train(run, model, task, checkpoint=None, world=world)
    return run.folder


def resume(path: str | Path, *, checkpoint: str = "last", mesh: MeshConfig | None = None) -> Path:
    """Continue an interrupted run as if it had never stopped; returns its folder.

    From an earlier checkpoint than the last, everything that came after it is dropped.

    Args:
        path: the run's folder.
        checkpoint: "last", "best", or a step.
        mesh: other processes than the run had; None: the same.

    Raises:
        UserError: no such run or checkpoint, or the data are not the run's any more.
        KeyboardInterrupt: after a Ctrl-C, with a checkpoint saved.
    """
    run = open_run(path)
    config = run.read_config()
    config = config if mesh is None else replace(config, mesh=mesh)
    folder = find_checkpoint(run, checkpoint)
    require_for_training(config)
    with processes(config) as world:
        keep_freed_memory()
        device = choose_device(config.device, threads=config.threads)
        state = load_state(folder)
        model = build_model(config).to(device)
        task = _prepare(config, world)
        if state["data"] != task.name:
            raise UserError(
                f"expected the data that the run in {str(run.folder)!r} started with, but they have changed; "
                "restore them, or start a new run"
            )
        lines_up_to(run.metrics, state["counters"]["step"])  # refuses damaged ones before anything is dropped
        _train(run, model, task, checkpoint=folder, world=world)
    return run.folder


def begin(run: Run, model: nn.Module, task: Task) -> None:
    """Give a run its checkpoint of step 0, of a model that was made from others, so that `resume` trains it.

    Raises:
        UserError: the disk is full or cannot be written.
    """
    from mixtura.train.weights import Weights  # late, as in `_train`

    torch.manual_seed(task.config.seed)
    weights = Weights(model, config=task.config, world=World(), checkpoint=None)
    state = _state(task.stream(), Counters(), task=task, controller=build_controller(model, task.config))
    weights.save(run, state, step=0, best_step=0)


def _prepare(config: TrainConfig, world: World) -> Task:
    return world.first(lambda: config.prepare(on_progress=say if world.is_first else None))


def _train(run: Run, model: nn.Module, task: Task, *, checkpoint: Path | None, world: World) -> None:
    """The loop itself: step, measure, now and then evaluate and save."""
    from mixtura.train.weights import Weights  # late: the longest chain of imports would start here

    config = task.config
    weights = Weights(model, config=config, world=world, checkpoint=checkpoint)
    stream = task.stream(rank=world.data_rank, world_size=world.data_size)
    controller = build_controller(model, config)
    counters = Counters()
    if checkpoint is not None:
        counters = _restore(load_state(checkpoint), stream, controller=controller, world=world)
    start = counters.step
    if world.is_first and (dropped := go_back(run, step=start)):
        say(f"going back to step {start}: dropped the later checkpoints of steps {', '.join(map(str, dropped))}")
    with Reports(run, config=config, after_step=start, enabled=world.is_first) as reports, _interruption() as event:
        while counters.step < config.steps:
            began = time.perf_counter()
            result = train_step(model, weights.optimizer, stream, task=task, step=counters.step, clip=weights.clip)
            measured = measure(result, mean=world.mean)
            if controller is not None:
                controller.step(result.log)
            spent = time.perf_counter() - began
            items = result.items * world.data_size
            counters = counters.after_step(items=items, seconds=spent)
            row = counters.row() | {"items_per_s": round(items / spent, 1)} | measured

            is_last, is_best = counters.step == config.steps, False
            if is_last or counters.step % config.eval_interval == 0:
                evaluation = evaluate(model, task)
                losses = evaluation.with_mean()
                row |= _evaluated(losses, evaluation.scores)
                if is_best := losses["mean"] < counters.best_loss:
                    counters = replace(counters, best_step=counters.step, best_loss=losses["mean"])
            reports.write(row)

            stop = world.any(event.is_set())
            if is_best or is_last or stop or counters.step % config.checkpoint_interval == 0:
                reports.sync()
                state = _state(stream, counters, task=task, controller=controller)
                weights.save(run, state, step=counters.step, best_step=counters.best_step)
            if stop and not is_last:
                weights.wait()
                raise KeyboardInterrupt(f"stopped after step {counters.step}, which is saved; {run.advice}")
    weights.wait()
    if world.is_first:
        finish(run, weights.whole(run), task)


def _evaluated(losses: Mapping[str, float], scores: Mapping[str, float]) -> dict[str, Any]:
    row = {"val_loss": {name: number(loss) for name, loss in losses.items()}}
    return row | ({"val_score": {name: number(score) for name, score in scores.items()}} if scores else {})


def _restore(state: dict[str, Any], stream: Stream, *, controller: BalanceController | None, world: World) -> Counters:
    stream.load_state_dict(state["stream"])
    set_random_state(state["random"])
    if not world.is_first:  # the numbers are those of the first rank; noise must differ
        torch.manual_seed(torch.initial_seed() + state["counters"]["step"] * 65_537 + world.data_rank)
    if controller is not None:
        controller.load_state_dict(state["balance"])
    return Counters(**state["counters"])


def _state(stream: Stream, counters: Counters, *, task: Task, controller: BalanceController | None) -> dict[str, Any]:
    return {
        "counters": asdict(counters),
        "stream": stream.state_dict(),
        "random": random_state(),
        "data": task.name,
        "balance": None if controller is None else controller.state_dict(),
    }


@contextmanager
def _interruption() -> Iterator[threading.Event]:
    """An event that a Ctrl-C sets, so that the step in progress ends whole; a second Ctrl-C kills."""
    interrupted = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # only that one hears signals
        yield interrupted
        return

    def note(_: int, __: object) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        interrupted.set()

    previous = signal.signal(signal.SIGINT, note)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, previous)
