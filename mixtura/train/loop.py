"""The training loop: from a configuration to a run's folder with metrics, checkpoints and a report."""

import json
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mixtura.errors import UserError
from mixtura.models import GPT, GPTConfig, count_parameters
from mixtura.observe.report import write_report
from mixtura.train.board import Board
from mixtura.train.checkpoint import find_checkpoint, load_state, load_weights, save_checkpoint
from mixtura.train.config import TrainConfig
from mixtura.train.data.stream import TokenStream
from mixtura.train.data.tokens import Corpus, prepare
from mixtura.train.files import write_file
from mixtura.train.metrics import MetricsFile, step_row
from mixtura.train.observations import observe
from mixtura.train.optim import build_optimizer
from mixtura.train.progress import Progress
from mixtura.train.run import Run, create_run, open_run
from mixtura.train.step import evaluate, train_step


@dataclass
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


def train(config: TrainConfig) -> Path:
    """Train from the start; returns the run's folder.

    Raises:
        UserError: anything wrong with the configuration, the data, or the disk.
        KeyboardInterrupt: after a Ctrl-C, with a checkpoint saved.
    """
    device = choose_device(config)
    corpus = prepare(config.data, on_progress=print)
    config = fit_to_corpus(config, corpus)
    torch.manual_seed(config.seed)
    model = GPT(config.model, recompute_interval=config.recompute_interval).to(device)
    run = create_run(config, count_parameters(model), device)
    corpus.tokenizer.save(run.tokenizer)
    _introduce(run, model, corpus)
    _train(run, model, corpus, config, state=None)
    return run.folder


def resume(path: str | Path, *, checkpoint: str = "last") -> Path:
    """Continue an interrupted run as if it had never stopped; returns its folder.

    Raises:
        UserError: no such run or checkpoint, or the data are not the run's any more.
    """
    run = open_run(path)
    config = run.read_config()
    device = choose_device(config)
    corpus = prepare(config.data, on_progress=print)
    state = load_state(folder := find_checkpoint(run, checkpoint))
    if state["corpus"] != corpus.folder.name:
        raise UserError(
            f"expected the data the run started with, but the text of --data.path {config.data.path!r} has changed; "
            "restore it, or start a new run"
        )
    model = GPT(config.model, recompute_interval=config.recompute_interval).to(device)
    load_weights(model, folder)
    _train(run, model, corpus, config, state=state)
    return run.folder


def choose_device(config: TrainConfig) -> torch.device:
    """The device a configuration asks for; "auto": cuda, else mps, else cpu. Also sets the CPU threads.

    Raises:
        UserError: no such device, or not on this machine.

    Example:
        >>> choose_device(TrainConfig(device="cpu"))
        device(type='cpu')
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    if config.device == "auto":
        return torch.device(
            "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        )
    try:
        device = torch.device(config.device)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # torch asserts where it was built without a device
        reason = str(error).splitlines()[0]
        raise UserError(f"expected a device of this machine, got {config.device!r} ({reason}); try --device cpu") from error
    return device


def fit_to_corpus(config: TrainConfig, corpus: Corpus) -> TrainConfig:
    """The configuration with the model's vocabulary and context taken from the data.

    Raises:
        UserError: the configuration asks for others.
    """
    taken = {"vocab_size": corpus.tokenizer.vocab_size, "context": config.data.seq_len}
    for name, source in (("vocab_size", "vocab_size"), ("context", "seq_len")):
        asked = getattr(config.model, name)
        if asked not in (taken[name], getattr(GPTConfig(), name)):
            raise UserError(f"expected model.{name} to come from the data, got {asked}; set --data.{source} instead")
    return replace(config, model=replace(config.model, **taken))


def _introduce(run: Run, model: GPT, corpus: Corpus) -> None:
    count = count_parameters(model)
    for row in corpus.summary():
        print(f"{row.domain:>12}  train {row.train_mb:7.2f} MB   held out {row.val_mb:6.2f} MB")  # noqa: T201
    print(f"{run.folder}: {count.total:,} parameters, {count.active:,} active per token")  # noqa: T201


def _train(run: Run, model: GPT, corpus: Corpus, config: TrainConfig, *, state: dict[str, Any] | None) -> None:
    """The loop itself: step, log, now and then evaluate and save."""
    device = model.embedding.weight.device
    bytes_V = torch.tensor(corpus.tokenizer.byte_lengths, dtype=torch.float32, device=device)
    optimizer = build_optimizer(model, config.optim)
    stream = TokenStream(
        corpus, batch_size=config.data.batch_size, seq_len=config.data.seq_len, seed=config.data.seed
    )
    counters = Counters()
    if state is not None:
        counters = Counters(**state["counters"])
        optimizer.load_state_dict(state["optimizer"])
        stream.load_state_dict(state["stream"])
        _set_random_state(state["random"])
    metrics, board = MetricsFile(run.metrics, after_step=counters.step), Board(run.folder, enabled=config.tensorboard)
    with Progress(total=config.steps, done=counters.step) as progress, _until_interrupted() as interrupted:
        while counters.step < config.steps and not interrupted:
            start = time.perf_counter()
            result = train_step(model, optimizer, stream, config=config, step=counters.step, bytes_V=bytes_V)
            spent = time.perf_counter() - start
            counters.step, counters.tokens = counters.step + 1, counters.tokens + result.tokens
            counters.seconds += spent
            row = step_row(
                result, step=counters.step, tokens=counters.tokens, seconds=counters.seconds, step_seconds=spent
            )
            is_last = counters.step == config.steps
            if is_last or counters.step % config.eval_interval == 0:
                row["val_loss"] = evaluate(model, corpus, config=config, bytes_V=bytes_V)
                progress.evaluated(row)
            metrics.write(row)
            board.write(row)
            progress.update(row)
            is_best = "val_loss" in row and row["val_loss"]["mean"] < counters.best_loss
            if is_best:
                counters.best_step, counters.best_loss = counters.step, row["val_loss"]["mean"]
            if is_best or is_last or interrupted or counters.step % config.checkpoint_interval == 0:
                state = _state(optimizer, stream, counters, corpus)
                save_checkpoint(run, model, state, step=counters.step, best_step=counters.best_step)
    metrics.close()
    board.close()
    if counters.step < config.steps:
        print(f"stopped after step {counters.step}; continue with: mixtura resume {run.folder}")  # noqa: T201
        raise KeyboardInterrupt
    finish(run, model, corpus, config)


def finish(run: Run, model: GPT, corpus: Corpus, config: TrainConfig) -> Path:
    """Look at the trained model and write the report; returns its path."""
    write_file(run.folder / "observations.json", json.dumps(observe(model, corpus, config=config)))
    return write_report(run.folder)


def _state(
    optimizer: torch.optim.Optimizer, stream: TokenStream, counters: Counters, corpus: Corpus
) -> dict[str, Any]:
    return {
        "counters": asdict(counters),
        "optimizer": optimizer.state_dict(),
        "stream": stream.state_dict(),
        "random": _random_state(),
        "corpus": corpus.folder.name,
    }


def _random_state() -> dict[str, Any]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def _set_random_state(state: dict[str, Tensor | list[Tensor]]) -> None:
    torch.set_rng_state(state["cpu"])
    if torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


@contextmanager
def _until_interrupted() -> Iterator[list[int]]:
    """A list that becomes non-empty at the first Ctrl-C, so that the step in progress ends whole; a second one kills."""
    interrupted: list[int] = []

    def note(number: int, _: object) -> None:
        interrupted.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    previous = signal.signal(signal.SIGINT, note)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, previous)
