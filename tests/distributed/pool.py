"""Processes that stay and run one case after another, so that only the first case pays for starting them."""

import atexit
import contextlib
import importlib
import multiprocessing
import os
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist

TIMEOUT = 60.0
CASES = 8


def _serve(pipe: Connection, meet: str | None, rank: int, world: int, timeout: float) -> None:
    torch.set_num_threads(1)
    os.environ["RANK"] = str(rank)
    if meet is not None:
        dist.init_process_group(
            "gloo", init_method=meet, rank=rank, world_size=world, timeout=timedelta(seconds=timeout)
        )
    while (task := pipe.recv()) is not None:
        module, name, arguments = task
        torch.manual_seed(0)
        try:
            result = getattr(importlib.import_module(module), name)(*arguments)
        except Exception as error:  # noqa: BLE001  # whatever a case raises is the test's to see
            result = (type(error).__name__, str(error), traceback.format_exc())
            pipe.send(("error", result))
        else:
            pipe.send(("result", result))
    if meet is not None:
        dist.destroy_process_group()


class Pool:
    """`world` processes in one gloo group; not `grouped`: each by itself, to meet in a group of the case's own."""

    def __init__(self, world: int, *, timeout: float = TIMEOUT, grouped: bool = True) -> None:
        self.world, self.cases = world, 0
        self._folder = tempfile.TemporaryDirectory()
        meet = Path(self._folder.name, "meet").as_uri() if grouped else None
        # Forked from one process that has imported everything: starting one is then a matter of milliseconds.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["tests.distributed.preload"])
        self._pipes: list[Connection] = []
        self.processes = []
        for rank in range(world):
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(there, meet, rank, world, timeout), daemon=True)
            process.start()
            self._pipes.append(here)
            self.processes.append(process)

    def outcomes(self, case: Callable[..., Any], *arguments: Any, limit: float = 2 * TIMEOUT) -> list[tuple[str, Any]]:
        """Run a case on every rank: ("result", value), ("error", (type, text, traceback)), "hangs" or "gone"."""
        self.cases += 1
        for pipe in self._pipes:
            pipe.send((case.__module__, case.__name__, arguments))
        found = []
        for rank, pipe in enumerate(self._pipes):
            try:
                found.append(pipe.recv() if pipe.poll(limit) else ("hangs", None))
            except EOFError:
                self.processes[rank].join()
                found.append(("gone", None))
        return found

    def run(self, case: Callable[..., Any], *arguments: Any) -> list[Any]:
        """The value of `case(*arguments)` on each rank; an error on any is the test's failure."""
        outcomes = self.outcomes(case, *arguments)
        if any(kind != "result" for kind, _ in outcomes):
            _pools.pop(self.world, None)  # the ranks may wait for one another now; the next test gets others
            self.close()
        failed = [
            f"rank {r}: {kind}\n{value[2] if value else ''}"
            for r, (kind, value) in enumerate(outcomes)
            if kind != "result"
        ]
        assert not failed, "\n".join(sorted(failed, key=lambda text: "RankError" in text))
        return [value for _, value in outcomes]

    def close(self) -> None:
        """End the processes."""
        for pipe in self._pipes:
            with contextlib.suppress(BrokenPipeError):  # it has gone already
                pipe.send(None)
        for process in self.processes:
            process.join(2)
            if process.is_alive():
                process.kill()
                process.join()
        self._folder.cleanup()


_pools: dict[int, Pool] = {}


def world(size: int) -> Pool:
    """Give the pool of so many processes that tests share; now and then a fresh one, for groups of ranks pile up."""
    if size in _pools and _pools[size].cases >= CASES:
        _pools.pop(size).close()
    if size not in _pools:
        _pools[size] = Pool(size)
        atexit.register(_pools[size].close)
    return _pools[size]
