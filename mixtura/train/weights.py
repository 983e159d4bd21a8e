"""A run's model and optimizer, on one process or on a mesh: put in place, saved, restored."""

import json
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from copy import deepcopy
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from torch import Tensor, nn

from mixtura.train.checkpoint import PARTS, find_checkpoint, load_state, load_weights, save_checkpoint, step_of
from mixtura.train.config import MeshConfig, TrainConfig
from mixtura.train.metrics import lines_up_to
from mixtura.train.optim import build_optimizer
from mixtura.train.run import Run
from mixtura.train.setup import build_model
from mixtura.train.step import clip_here
from mixtura.train.tasks.task import device_of
from mixtura.train.world import World

# Steps whose loads say where experts should live.
MEASURED = 100


class Weights:
    """A model where it is to be trained, and its optimizer.

    A checkpoint of a mesh holds what each process wrote beside the whole weights; any number of processes reads it, and
    a checkpoint of one process too. On a mesh it is written while training goes on, and takes its place when all of it
    is on the disk: who is killed meanwhile goes on from the one before.

    Args:
        model: whole, on its device.
        config: of the run.
        world: its processes.
        checkpoint: to start from; None: the model as it is.
    """

    def __init__(self, model: nn.Module, *, config: TrainConfig, world: World, checkpoint: Path | None) -> None:
        self._model, self._config, self._world = model, config, world
        parts = None if checkpoint is None else checkpoint / PARTS
        if checkpoint is not None:
            load_weights(model, checkpoint)
        if world.mesh is not None:
            from mixtura.parallel.shard import parallelize

            mesh = config.mesh
            parallelize(
                model,
                world.mesh,
                chunks=mesh.chunks,
                payload=None if mesh.payload == "whole" else mesh.payload,
                node_size=mesh.node_size,
                placement=world.same(_placement(checkpoint, mesh) if checkpoint and world.is_first else None),
            )
            self._begin_to_save()
        self.optimizer = build_optimizer(model, config.optim)
        if checkpoint is None or parts is None:
            return
        if parts.is_dir():
            from mixtura.parallel.checkpoint import load

            load(parts, model, self.optimizer)
        elif world.mesh is None:
            self.optimizer.load_state_dict(load_state(checkpoint)["optimizer"])
        else:
            self._adopt(checkpoint)

    @property
    def clip(self) -> Callable[[nn.Module, float], Tensor]:
        """What `train_step` clips with."""
        if self._world.mesh is None:
            return clip_here
        from mixtura.parallel.clip import clip_grad_norm

        return clip_grad_norm

    def _adopt(self, checkpoint: Path) -> None:
        """Take the state of a run that had one process."""
        from mixtura.parallel.checkpoint import adopt

        source = self._empty()
        load_weights(source, checkpoint)
        optimizer = build_optimizer(source, self._config.optim)
        optimizer.load_state_dict(load_state(checkpoint)["optimizer"])
        adopt(self._model, self.optimizer, source=source, source_optimizer=optimizer)

    def _begin_to_save(self) -> None:
        from mixtura.parallel.checkpoint import Saver

        self._saver, self._thread = Saver(timeout=self._config.mesh.timeout), ThreadPoolExecutor(1)
        self._pending: Future[None] | None = None

    def save(self, run: Run, state: Mapping[str, Any], *, step: int, best_step: int) -> None:
        """Write a checkpoint, or begin to; every process calls this. Waits for the one before."""
        if self._world.mesh is None:
            whole = {**state, "optimizer": self.optimizer.state_dict()}
            save_checkpoint(run, self._model, whole, step=step, best_step=best_step)
            return
        self.wait()
        parts = self._world.same(run.checkpoints / f".new-{uuid4().hex}")
        self._saver.save(parts, self._model, self.optimizer)
        if self._world.is_first:
            # Built here: the thread must not touch the run's random numbers. The state may change when this returns.
            model, kept = self._empty(), deepcopy({**state, "optimizer": None})
            self._pending = self._thread.submit(
                self._complete, run, model, kept, parts=parts, step=step, best_step=best_step
            )

    def _complete(
        self, run: Run, model: nn.Module, state: dict[str, Any], *, parts: Path, step: int, best_step: int
    ) -> None:
        """When every process has written its part: the whole weights beside them, and all to its place."""
        from mixtura.parallel.checkpoint import read_weights

        self._saver.wait()
        model.load_state_dict(read_weights(parts))
        save_checkpoint(run, model, state, step=step, best_step=best_step, parts=parts)

    def wait(self) -> None:
        """Wait until the last checkpoint is in its place; every process calls this.

        Raises:
            UserError: the disk is full or cannot be written; older checkpoints are untouched.
        """
        if self._world.mesh is None:
            return
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()
        self._saver.wait()
        self._world.first(lambda: None)  # the others go on when it is there

    def whole(self, run: Run) -> nn.Module:
        """The model on one process, as it was saved last."""
        if self._world.mesh is None:
            return self._model
        model = self._empty().to(device_of(self._model))
        load_weights(model, find_checkpoint(run))
        return model

    def _empty(self) -> nn.Module:
        """The model on one process with any weights; nothing is drawn from the run's random numbers."""
        with torch.random.fork_rng(devices=[]):
            return build_model(self._config)


def _placement(checkpoint: Path, mesh: MeshConfig) -> dict[str, Any] | None:
    """Where each mixture's experts should live, by its loads over the last steps before a checkpoint."""
    if not mesh.place:
        return None
    from mixtura.parallel.balance import place_experts

    run = Run(checkpoint.parents[1])
    rows = [json.loads(line)["load"] for line in lines_up_to(run.metrics, step_of(checkpoint))[-MEASURED:]]
    loads = {name: [sum(row[name][e] for row in rows) for e in range(len(rows[0][name]))] for name in rows[0]}
    return {name: place_experts(load, ranks=mesh.ep, copies=mesh.copies) for name, load in loads.items()}
