"""The training loop: from a configuration to a run's folder with metrics, checkpoints and a report."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from mixtura.control import BalanceController
from mixtura.errors import UserError
from mixtura.models.count import count_parameters
from mixtura.models.gpt import GPT
from mixtura.train.board import Board
from mixtura.train.checkpoint import find_checkpoint, go_back, load_state, load_weights, save_checkpoint
from mixtura.train.config import TrainConfig
from mixtura.train.data.stream import TokenStream
from mixtura.train.data.tokens import Corpus, prepare
from mixtura.train.device import choose_device, keep_freed_memory, random_state, set_random_state
from mixtura.train.metrics import MetricsFile, lines_up_to, measure, number
from mixtura.train.observations import finish
from mixtura.train.optim import build_optimizer
from mixtura.train.progress import Progress, say
from mixtura.train.run import Run, create_run, new_run_folder, open_run
from mixtura.train.setup import build_controller, build_model, check_start, fit_to_corpus, require_for_training
from mixtura.train.step import evaluate, train_step


@dataclass(frozen=True, kw_only=True)
class Counters:
    """How far a run is; stored in every checkpoint.

    Example:
        >>> Counters().step
        0
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    best_step: int = 0
    best_loss: float = float("inf")

    def after_step(self, *, tokens: int, seconds: float) -> "Counters":
        """One step further."""
        return replace(self, step=self.step + 1, tokens=self.tokens + tokens, seconds=self.seconds + seconds)

    def row(self) -> dict[str, Any]:
        """What a row of metrics tells of them."""
        return {"step": self.step, "tokens": self.tokens, "seconds": round(self.seconds, 4)}


def train(config: TrainConfig) -> Path:
    """Train from the start; returns the run's folder.

    Raises:
        UserError: anything wrong with the configuration, the data, or the disk.
        KeyboardInterrupt: after a Ctrl-C, with a checkpoint saved.
    """
    check_start(config)
    new_run_folder(config)
    keep_freed_memory()
    device = choose_device(config)
    corpus = prepare(config.data, on_progress=say)
    config = fit_to_corpus(config, corpus)
    torch.manual_seed(config.seed)
    model = build_model(config).to(device)
    count = count_parameters(model)
    run = create_run(config, parameters=count, tokenizer=corpus.tokenizer, device=device)
    for row in corpus.summary():
        say(f"{row.domain:>12}  train {row.train_mb:7.2f} MB   held out {row.val_mb:6.2f} MB")
    say(f"{run.folder}: {count.total:,} parameters, {count.active:,} active per token")
    _train(run, model, corpus, config=config, state=None)
    return run.folder


def resume(path: str | Path, *, checkpoint: str = "last") -> Path:
    """Continue an interrupted run as if it had never stopped; returns its folder.

    From an earlier checkpoint than the last, everything that came after it is dropped.

    Raises:
        UserError: no such run or checkpoint, or the data are not the run's any more.
        KeyboardInterrupt: after a Ctrl-C, with a checkpoint saved.
    """
    run = open_run(path)
    config = run.read_config()
    folder = find_checkpoint(run, checkpoint)
    require_for_training(config)
    keep_freed_memory()
    device = choose_device(config)
    state = load_state(folder)
    model = build_model(config).to(device)
    load_weights(model, folder)
    corpus = prepare(config.data, on_progress=say)
    if state["corpus"] != corpus.folder.name:
        raise UserError(
            f"expected the data the run started with, but the text of --data.path {config.data.path!r} has changed; "
            "restore it, or start a new run"
        )
    lines_up_to(run.metrics, state["counters"]["step"])  # refuses damaged ones before anything is dropped
    _train(run, model, corpus, config=config, state=state)
    return run.folder


def _train(run: Run, model: GPT, corpus: Corpus, *, config: TrainConfig, state: dict[str, Any] | None) -> None:
    """The loop itself: step, measure, now and then evaluate and save."""
    device = model.embedding.weight.device
    bytes_V = torch.tensor(corpus.tokenizer.byte_lengths, dtype=torch.float32, device=device)
    optimizer = build_optimizer(model, config.optim)
    stream = TokenStream(corpus, batch_size=config.data.batch_size, seq_len=config.data.seq_len, seed=config.data.seed)
    controller = build_controller(model, config)
    counters = Counters() if state is None else _restore(state, optimizer, stream, controller=controller)
    start = counters.step
    if dropped := go_back(run, step=start):
        say(f"going back to step {start}: dropped the later checkpoints of steps {', '.join(map(str, dropped))}")
    with (
        MetricsFile(run.metrics, after_step=start, advice=run.advice) as metrics,
        Board(run.folder, enabled=config.tensorboard, after_step=start, advice=run.advice) as board,
        Progress(total=config.steps, done=start) as progress,
        _interruption() as interrupted,
    ):
        while counters.step < config.steps:
            began = time.perf_counter()
            result = train_step(model, optimizer, stream, config=config, step=counters.step, bytes_V=bytes_V)
            measured = measure(result)
            if controller is not None:
                controller.step(result.log)
            spent = time.perf_counter() - began
            counters = counters.after_step(tokens=result.tokens, seconds=spent)
            row = counters.row() | {"tokens_per_s": round(result.tokens / spent, 1)} | measured

            is_last, is_best = counters.step == config.steps, False
            if is_last or counters.step % config.eval_interval == 0:
                losses = evaluate(model, corpus, config=config, bytes_V=bytes_V)
                row["val_loss"] = {name: number(loss) for name, loss in losses.items()}
                progress.evaluated(row)
                if is_best := losses["mean"] < counters.best_loss:
                    counters = replace(counters, best_step=counters.step, best_loss=losses["mean"])
            metrics.write(row)
            board.write(row)
            progress.update(row)

            stop = interrupted.is_set()
            if is_best or is_last or stop or counters.step % config.checkpoint_interval == 0:
                metrics.sync()
                state = _state(optimizer, stream, counters, corpus=corpus, controller=controller)
                save_checkpoint(run, model, state, step=counters.step, best_step=counters.best_step)
            if stop and not is_last:
                raise KeyboardInterrupt(f"stopped after step {counters.step}, which is saved; {run.advice}")
    finish(run, model, corpus=corpus, config=config)


def _restore(
    state: dict[str, Any],
    optimizer: torch.optim.Optimizer,
    stream: TokenStream,
    *,
    controller: BalanceController | None,
) -> Counters:
    optimizer.load_state_dict(state["optimizer"])
    stream.load_state_dict(state["stream"])
    set_random_state(state["random"])
    if controller is not None:
        controller.load_state_dict(state["balance"])
    return Counters(**state["counters"])


def _state(
    optimizer: torch.optim.Optimizer,
    stream: TokenStream,
    counters: Counters,
    *,
    corpus: Corpus,
    controller: BalanceController | None,
) -> dict[str, Any]:
    return {
        "counters": asdict(counters),
        "optimizer": optimizer.state_dict(),
        "stream": stream.state_dict(),
        "random": random_state(),
        "corpus": corpus.folder.name,
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
