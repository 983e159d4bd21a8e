"""The processes of a run: one, or as many as torchrun started."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from mixtura.errors import UserError
from mixtura.train.config import TrainConfig

Value = TypeVar("Value")


@dataclass(frozen=True, kw_only=True)
class World:
    """This process among those of the run.

    Attributes:
        rank: its number.
        data_rank: which share of each global batch it gets; ranks of one `tp` group get the same.
        data_size: into how many shares a global batch is cut.
        mesh: of all ranks; None: there is only this one.

    Example:
        >>> World().is_first
        True
    """

    rank: int = 0
    data_rank: int = 0
    data_size: int = 1
    mesh: DeviceMesh | None = None

    @property
    def is_first(self) -> bool:
        """Whether this rank writes and reports."""
        return self.rank == 0

    def same(self, value: Value) -> Value:
        """The first rank's value."""
        if self.mesh is None:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def first(self, make: Callable[[], Value]) -> Value:
        """What `make` gives, made by the first rank before the others: what it leaves on the disk they find."""
        if self.mesh is None:
            return make()
        if self.is_first:
            made = make()
            dist.barrier()
            return made
        dist.barrier()
        return make()

    def any(self, flag: bool) -> bool:  # noqa: FBT001  # one value, no option
        """Whether the flag is set on any rank."""
        if self.mesh is None:
            return flag
        flags = torch.tensor([flag], dtype=torch.int32, device=self._device())
        dist.all_reduce(flags, op=dist.ReduceOp.MAX)
        return bool(flags.item())

    def mean(self, values: dict[str, Any]) -> dict[str, Any]:
        """Nested dicts and lists of floats, each the mean over all ranks, which must have the same names."""
        if self.mesh is None:
            return values
        total = torch.tensor(_flat(values), dtype=torch.float64, device=self._device())
        dist.all_reduce(total)
        means = iter((total / dist.get_world_size()).tolist())
        found: dict[str, Any] = _visit(values, lambda _: next(means))
        return found

    def _device(self) -> torch.device:
        assert self.mesh is not None
        return torch.device(self.mesh.device_type)


def _flat(values: Any) -> list[float]:
    if isinstance(values, dict):
        return [number for value in values.values() for number in _flat(value)]
    return [number for value in values for number in _flat(value)] if isinstance(values, list) else [values]


def _visit(values: Any, change: Callable[[float], Any]) -> Any:
    if isinstance(values, dict):
        return {name: _visit(value, change) for name, value in values.items()}
    if isinstance(values, list):
        return [_visit(value, change) for value in values]
    return change(values)


@contextmanager
def processes(config: TrainConfig) -> Iterator[World]:
    """Inside the block the processes of a run know one another; alone there is nothing to do.

    Raises:
        UserError: another number of processes than `config.mesh` is for; a rank failed or went away.

    Example:
        >>> from mixtura.train.tasks.language import LanguageConfig
        >>> with processes(LanguageConfig()) as world:
        ...     world.data_size
        1
    """
    mesh = config.mesh
    asked, started = mesh.dp * mesh.fsdp * mesh.ep * mesh.tp, int(os.environ.get("WORLD_SIZE", "1"))
    if asked != started:
        raise UserError(
            f"expected {asked} processes for this mesh, got {started}; "
            f"start with: torchrun --nproc-per-node {asked} -m mixtura ..., or change --mesh.dp, .fsdp, .ep, .tp"
        )
    if started == 1:
        yield World()
        return
    from mixtura.parallel.collective import RankError
    from mixtura.parallel.mesh import make_mesh, meeting_place

    on_gpu = config.device not in ("cpu", "mps") and torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    backend, limit = "nccl" if on_gpu else "gloo", timedelta(seconds=mesh.timeout)
    dist.init_process_group(backend, timeout=limit, **meeting_place(timeout=mesh.timeout))
    try:
        full = make_mesh(
            dp=mesh.dp,
            fsdp=mesh.fsdp,
            ep=mesh.ep,
            tp=mesh.tp,
            device_type="cuda" if on_gpu else "cpu",
            timeout=mesh.timeout,
        )
        rank = dist.get_rank()
        yield World(rank=rank, data_rank=rank // mesh.tp, data_size=started // mesh.tp, mesh=full)
    except RankError as error:
        raise UserError(f"{error}; the others wait at most {mesh.timeout:g} s (--mesh.timeout)") from error
    finally:
        dist.destroy_process_group()


def restarted() -> bool:
    """Whether torchrun starts these processes again after a failure.

    Example:
        >>> restarted()
        False
    """
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
