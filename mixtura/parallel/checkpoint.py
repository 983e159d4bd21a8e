"""Checkpoints of a model and its optimizer on any mesh, by torch's distributed checkpoints (DCP).

A checkpoint is a folder that every rank writes its part of. It names tensors and says nothing of ranks: another number
of processes, another mesh or one process alone read it to the same bits.
"""

import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load as read
from torch.distributed.checkpoint.state_dict_saver import async_save
from torch.distributed.checkpoint.state_dict_saver import save as write
from torch.distributed.tensor import DTensor, distribute_tensor

from mixtura.errors import UserError
from mixtura.parallel.expert import ExpertParallel
from mixtura.parallel.tensor import TensorParallel

# Flat names: ranks whose module experts differ have different entries, and each entry stands for itself.
_OPTIONS = StateDictOptions(flatten_optimizer_state_dict=True)


class Saver:
    """Writes checkpoints while training goes on.

    The values are copied when `save` is called, written by a thread, and on the disk when `wait` returns. The thread
    talks to the other ranks over a group of its own, so that its messages cannot meet those of the training.

    Args:
        timeout: seconds that a rank waits for another in that group; None: torch's own half an hour.

    Example:
        >>> import tempfile
        >>> model = nn.Linear(2, 1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     saver = Saver()
        ...     saver.save(Path(folder, "a"), model, torch.optim.AdamW(model.parameters()))
        ...     saver.wait()
        ...     is_whole(Path(folder, "a"))
        True
    """

    def __init__(self, *, timeout: float | None = None) -> None:
        limit = None if timeout is None else timedelta(seconds=timeout)
        self._group = dist.new_group(backend="gloo", timeout=limit) if dist.is_initialized() else None
        self._pending: Future[Any] | None = None

    def save(self, folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Begin to write a checkpoint; every rank calls this. Waits for the one before."""
        self.wait()
        state = _state(model, optimizer)
        if self._group is None:
            with _one_process():
                write(state, checkpoint_id=str(folder), no_dist=True)
            return
        pending = async_save(state, checkpoint_id=str(folder), process_group=self._group)
        assert isinstance(pending, Future)
        self._pending = pending

    def wait(self) -> None:
        """Wait until the last checkpoint is on the disk.

        Raises:
            CheckpointException: torch's own; a rank could not write its part.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()


def is_whole(folder: Path) -> bool:
    """Whether a folder holds a checkpoint that was written to its end: its table of contents is written last.

    Example:
        >>> is_whole(Path("nowhere"))
        False
    """
    return (folder / ".metadata").is_file()


def load(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Fill a model and its optimizer from a checkpoint of any mesh; every rank calls this.

    Args:
        folder: of `Saver.save`.
        model: on its own mesh or on none, with the same parameters by name.
        optimizer: of the same kind, made after `parallelize`.

    Raises:
        UserError: no whole checkpoint, or one of another model or optimizer.

    Example:
        >>> import tempfile
        >>> model = nn.Linear(2, 1)
        >>> optimizer = torch.optim.AdamW(model.parameters())
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Saver().save(Path(folder), model, optimizer)
        ...     before = model.weight.tolist(); _ = model.weight.data.zero_()
        ...     load(Path(folder), model, optimizer)
        >>> model.weight.tolist() == before
        True
    """
    _check_whole(folder)
    model_state, optimizer_state = _raw_state(model, optimizer)
    orders = _orders(model)
    state = {
        "model": _translate(model_state, orders, empty=True),
        "optimizer": _translate(optimizer_state, orders, empty=True),
    }
    saved = _contents(folder)
    if missing := sorted(
        f"{part}.{name}" for part, named in state.items() for name in named if f"{part}.{name}" not in saved
    ):
        raise UserError(
            f"expected a checkpoint of this model and optimizer in {str(folder)!r}, got one without {missing[0]}"
        )
    with _one_process():
        read(state, checkpoint_id=str(folder), no_dist=not dist.is_initialized())
    set_state_dict(
        model,
        [optimizer],
        model_state_dict=_restore(state["model"], model_state, orders),
        optim_state_dict=_restore(state["optimizer"], optimizer_state, orders),
        options=_OPTIONS,
    )


def adopt(
    model: nn.Module, optimizer: torch.optim.Optimizer, *, source: nn.Module, source_optimizer: torch.optim.Optimizer
) -> None:
    """Fill a model on a mesh, and its optimizer, from their twins that every rank has whole.

    Example:
        >>> source, model = nn.Linear(2, 1), nn.Linear(2, 1)
        >>> sources, optimizer = (torch.optim.AdamW(m.parameters()) for m in (source, model))
        >>> adopt(model, optimizer, source=source, source_optimizer=sources)
        >>> torch.equal(model.weight, source.weight)
        True
    """
    theirs, mine = _raw_state(source, source_optimizer), _raw_state(model, optimizer)
    here = [{name: part[name] for name in own} for part, own in zip(theirs, mine, strict=True)]
    states = [_restore(part, own, _orders(model)) for part, own in zip(here, mine, strict=True)]
    set_state_dict(model, [optimizer], model_state_dict=states[0], optim_state_dict=states[1], options=_OPTIONS)


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All parameters and buffers of a checkpoint as whole tensors, by one process and without a model: to export them.

    Raises:
        UserError: no whole checkpoint.

    Example:
        >>> import tempfile
        >>> model = nn.Linear(2, 1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Saver().save(Path(folder), model, torch.optim.SGD(model.parameters()))
        ...     {name: tuple(value.shape) for name, value in read_weights(Path(folder)).items()}
        {'bias': (1,), 'weight': (1, 2)}
    """
    _check_whole(folder)
    weights = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in sorted(_contents(folder).items())
        if name.startswith("model.") and isinstance(entry, TensorStorageMetadata)
    }
    state = {"model": {name.removeprefix("model."): tensor for name, tensor in weights.items()}}
    with _one_process():
        read(state, checkpoint_id=str(folder), no_dist=True)
    return state["model"]


def export_safetensors(folder: Path, out: Path) -> None:
    """Write a checkpoint's weights as consolidated safetensors into a folder, from whatever mesh they came.

    Args:
        folder: of `Saver.save`.
        out: a new or empty folder.

    Raises:
        UserError: no whole checkpoint; safetensors is not installed.
    """
    try:
        writer = HuggingFaceStorageWriter(str(out))
    except ImportError as error:
        raise UserError("safetensors is not installed; run: pip install 'mixtura[train]'") from error
    with _one_process():
        write(read_weights(folder), storage_writer=writer, no_dist=True)


@contextmanager
def _one_process() -> Iterator[None]:
    """Torch warns where it is asked to do without other processes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
        yield


def _check_whole(folder: Path) -> None:
    if not is_whole(folder):
        raise UserError(f"expected a whole checkpoint in {str(folder)!r}, got none; take an earlier one")


def _contents(folder: Path) -> Mapping[str, Any]:
    return FileSystemReader(str(folder)).read_metadata().state_dict_metadata


def _raw_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[dict[str, Any], dict[str, Any]]:
    model_state, optimizer_state = get_state_dict(model, [optimizer], options=_OPTIONS)
    return dict(model_state), dict(optimizer_state)


def _state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    model_state, optimizer_state = _raw_state(model, optimizer)
    orders = _orders(model)
    return {"model": _translate(model_state, orders), "optimizer": _translate(optimizer_state, orders)}


@dataclass(frozen=True)
class _Order:
    """How a dimension of a parameter lies on the mesh: here[i] = plain[order[i]], and plain[i] = here[inverse[i]]."""

    dim: int
    order: Tensor
    inverse: Tensor


def _orders(model: nn.Module) -> dict[str, list[_Order]]:
    """The parameters that lie in another order: units that `TensorParallel` cut, experts placed by load or copied."""
    found: dict[str, list[_Order]] = defaultdict(list)
    for name, module in model.named_modules():
        if not isinstance(module, ExpertParallel):
            continue
        if module.slots is not None:
            for part, _ in module.named_parameters():
                order = _Order(0, module.slots.expert_S, module.slots.first_E)
                found[f"{name}.{part}".removeprefix(".")].append(order)
        if isinstance(tensor_parallel := module.inner, TensorParallel):
            order_F = tensor_parallel.order_F
            for part in ("up_proj", "up_bias"):
                found[f"{name}.{part}".removeprefix(".")].append(_Order(1, order_F, order_F.argsort()))
    return found


def _orders_of(name: str, orders: Mapping[str, list[_Order]]) -> list[_Order]:
    """The orders of a parameter, or of one of its tensors in the optimizer's state."""
    _, _, rest = name.partition("state.")
    return orders.get(name, orders.get(rest.rpartition(".")[0], []) if name.startswith("state.") else [])


def _translate(state: Mapping[str, Any], orders: Mapping[str, list[_Order]], *, empty: bool = False) -> dict[str, Any]:
    """What is written: reordered parameters whole and in their own order, all others as they are."""
    found = dict(state)
    for name, value in state.items():
        if isinstance(value, DTensor) and (reordered := _orders_of(name, orders)):
            found[name] = _empty(value, reordered) if empty else _plain(value, reordered)
    return found


def _empty(value: DTensor, reordered: list[_Order]) -> Tensor:
    shape = list(value.shape)
    for order in reordered:
        shape[order.dim] = len(order.inverse)
    return torch.empty(shape, dtype=value.dtype)


def _plain(value: DTensor, reordered: list[_Order]) -> Tensor:
    whole: Tensor = value.full_tensor()
    for order in reordered:
        whole = whole.index_select(order.dim, order.inverse.to(whole.device))
    return whole


def _restore(state: Mapping[str, Any], like: Mapping[str, Any], orders: Mapping[str, list[_Order]]) -> dict[str, Any]:
    """Undo `_translate`: whole tensors become what `like` has in their place."""
    found = dict(state)
    for name, value in like.items():
        if isinstance(value, DTensor) and not isinstance(state[name], DTensor):
            whole = state[name].to(value.device)
            for order in _orders_of(name, orders):
                whole = whole.index_select(order.dim, order.order.to(whole.device))
            found[name] = distribute_tensor(whole, value.device_mesh, value.placements, src_data_rank=None)
    return found
