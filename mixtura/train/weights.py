"""A run's model and optimizer, on one process or on a mesh: put in place, saved, restored."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from torch import Tensor, nn

from mixtura.train.checkpoint import PARTS, find_checkpoint, load_state, load_weights, save_checkpoint
from mixtura.train.config import TrainConfig
from mixtura.train.optim import build_optimizer
from mixtura.train.run import Run
from mixtura.train.setup import build_model
from mixtura.train.step import clip_here
from mixtura.train.tasks.task import device_of
from mixtura.train.world import World


class Weights:
    """A model where it is to be trained, and its optimizer.

    A checkpoint of a mesh holds what each process wrote beside the whole weights; any number of processes reads it, and
    a checkpoint of one process too.

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

            payload = None if config.mesh.payload == "whole" else config.mesh.payload
            parallelize(model, world.mesh, chunks=config.mesh.chunks, payload=payload)
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

    def save(self, run: Run, state: Mapping[str, Any], *, step: int, best_step: int) -> None:
        """Write a checkpoint; every process calls this."""
        if self._world.mesh is None:
            whole = {**state, "optimizer": self.optimizer.state_dict()}
            save_checkpoint(run, self._model, whole, step=step, best_step=best_step)
            return
        from mixtura.parallel.checkpoint import Saver, read_weights

        parts = self._world.same(run.checkpoints / f".new-{uuid4().hex}")
        saver = Saver()
        saver.save(parts, self._model, self.optimizer)
        saver.wait()
        if self._world.is_first:
            model = self._empty()
            model.load_state_dict(read_weights(parts))
            whole = {**state, "optimizer": None}
            save_checkpoint(run, model, whole, step=step, best_step=best_step, parts=parts)
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
