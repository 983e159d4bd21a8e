"""The training loop: from a configuration to a run's folder with metrics, checkpoints and a report."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from mixtura.errors import UserError
from mixtura.models.count import count_parameters
from mixtura.models.gpt import GPT, GPTConfig
from mixtura.train.board import Board
from mixtura.train.checkpoint import find_checkpoint, load_state, load_weights, save_checkpoint
from mixtura.train.config import TrainConfig
from mixtura.train.data.stream import TokenStream
from mixtura.train.data.tokens import Corpus, prepare
from mixtura.train.device import choose_device, random_state, set_random_state
from mixtura.train.metrics import MetricsFile, step_row
from mixtura.train.observations import finish
from mixtura.train.optim import build_optimizer
from mixtura.train.progress import Progress, say
from mixtura.train.run import Run, create_run, open_run
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


def train(config: TrainConfig) -> Path:
    """Train from the start; returns the run's folder.

    Raises:
        UserError: anything wrong with the configuration, the data, or the disk.
        KeyboardInterrupt: after a Ctrl-C, with a checkpoint saved.
    """
    device = choose_device(config)
    corpus = prepare(config.data, on_progress=say)
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
    corpus = prepare(config.data, on_progress=say)
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


def fit_to_corpus(config: TrainConfig, corpus: Corpus) -> TrainConfig:
    """The configuration with the model's vocabulary and context taken from the data.

    Raises:
        UserError: the configuration asks for others.
    """
    vocab_size, context = corpus.tokenizer.vocab_size, config.data.seq_len
    model, default = config.model, GPTConfig()
    if model.vocab_size not in (vocab_size, default.vocab_size):
        raise UserError(f"expected no --model.vocab-size, got {model.vocab_size}; set --data.vocab-size instead")
    if model.context not in (context, default.context):
        raise UserError(f"expected no --model.context, got {model.context}; set --data.seq-len instead")
    return replace(config, model=replace(model, vocab_size=vocab_size, context=context))


def _introduce(run: Run, model: GPT, corpus: Corpus) -> None:
    count = count_parameters(model)
    for row in corpus.summary():
        say(f"{row.domain:>12}  train {row.train_mb:7.2f} MB   held out {row.val_mb:6.2f} MB")
    say(f"{run.folder}: {count.total:,} parameters, {count.active:,} active per token")


def _train(run: Run, model: GPT, corpus: Corpus, config: TrainConfig, *, state: dict[str, Any] | None) -> None:
    """The loop itself: step, log, now and then evaluate and save."""
    device = model.embedding.weight.device
    bytes_V = torch.tensor(corpus.tokenizer.byte_lengths, dtype=torch.float32, device=device)
    optimizer = build_optimizer(model, config.optim)
    stream = TokenStream(corpus, batch_size=config.data.batch_size, seq_len=config.data.seq_len, seed=config.data.seed)
    counters = Counters()
    if state is not None:
        counters = Counters(**state["counters"])
        optimizer.load_state_dict(state["optimizer"])
        stream.load_state_dict(state["stream"])
        set_random_state(state["random"])
    metrics, board = MetricsFile(run.metrics, after_step=counters.step), Board(run.folder, enabled=config.tensorboard)
    with Progress(total=config.steps, done=counters.step) as progress, _until_interrupted() as interrupted:
        while counters.step < config.steps and not interrupted:
            start = time.perf_counter()
            result = train_step(model, optimizer, stream, config=config, step=counters.step, bytes_V=bytes_V)
            spent = time.perf_counter() - start
            counters = replace(
                counters,
                step=counters.step + 1,
                tokens=counters.tokens + result.tokens,
                seconds=counters.seconds + spent,
            )
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
                counters = replace(counters, best_step=counters.step, best_loss=row["val_loss"]["mean"])
            if is_best or is_last or interrupted or counters.step % config.checkpoint_interval == 0:
                state = _state(optimizer, stream, counters, corpus)
                save_checkpoint(run, model, state, step=counters.step, best_step=counters.best_step)
    metrics.close()
    board.close()
    if counters.step < config.steps:
        say(f"stopped after step {counters.step}; continue with: mixtura resume {run.folder}")
        raise KeyboardInterrupt
    finish(run, model, corpus=corpus, config=config)


def _state(optimizer: torch.optim.Optimizer, stream: TokenStream, counters: Counters, corpus: Corpus) -> dict[str, Any]:
    return {
        "counters": asdict(counters),
        "optimizer": optimizer.state_dict(),
        "stream": stream.state_dict(),
        "random": random_state(),
        "corpus": corpus.folder.name,
    }


@contextmanager
def _until_interrupted() -> Iterator[list[int]]:
    """A list that is no longer empty after a Ctrl-C, so that the step in progress ends whole; a second one kills."""
    interrupted: list[int] = []

    def note(number: int, _: object) -> None:
        interrupted.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    previous = signal.signal(signal.SIGINT, note)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, previous)
