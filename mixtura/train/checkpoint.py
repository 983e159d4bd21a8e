"""Checkpoints: safetensors weights and the state of everything else, written aside, synced, renamed.

A checkpoint is a folder `step-000500` with `model.safetensors` and `state.pt`. The last two and the best are kept.
"""

import pickle
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mixtura.errors import UserError
from mixtura.train.files import new_folder, writing
from mixtura.train.run import Run, point_link

KEEP = 2
PARTS = "parts"
STATE = {"counters", "optimizer", "stream", "random", "data"}


def save_checkpoint(
    run: Run, model: nn.Module, state: Mapping[str, Any], *, step: int, best_step: int, parts: Path | None = None
) -> Path:
    """Write the checkpoint of a step, then delete those that are neither among the last two nor the best.

    Args:
        run: whose checkpoint it is.
        model: whole, on one process.
        state: everything but the weights.
        step: the checkpoint's.
        best_step: the best one's.
        parts: a folder on the same disk that becomes the checkpoint's `parts`: what the processes of a mesh wrote.

    Raises:
        UserError: the disk is full or cannot be written; older checkpoints are untouched.
    """
    folder = run.checkpoints / f"step-{step:06d}"
    with new_folder(folder, what="the checkpoint", advice=run.advice) as temporary:
        _write(temporary, model, state, advice=run.advice)
        if parts is not None:
            parts.rename(temporary / PARTS)
    best = run.checkpoints / f"step-{best_step:06d}"
    if best.is_dir():  # also where a crash came between an earlier checkpoint and its link
        point_link(run.checkpoints / "best", best.name)
    kept = {*list_checkpoints(run)[-KEEP:], best}
    with writing(run.checkpoints, what="checkpoints", advice=run.advice):
        for old in list_checkpoints(run):
            if old not in kept:
                _delete(old)
    return folder


def _write(folder: Path, model: nn.Module, state: Mapping[str, Any], *, advice: str) -> None:
    import safetensors
    from safetensors.torch import save_model

    try:
        save_model(model, str(folder / "model.safetensors"))
        torch.save(dict(state), folder / "state.pt")
    except (safetensors.SafetensorError, RuntimeError) as error:  # how these libraries report a full disk
        raise UserError(
            f"cannot write the checkpoint in {folder.parent} ({_first_line(error)}); "
            f"free some space, or make it writable, {advice}"
        ) from error


def _delete(folder: Path) -> None:
    """Renamed first, so that no half of it can pass for a checkpoint."""
    aside = folder.with_name(f".old-{folder.name}")
    folder.rename(aside)
    shutil.rmtree(aside)


def go_back(run: Run, *, step: int) -> list[int]:
    """Delete checkpoints later than a step, whose metrics are cut off too, and what a killed run left half-written.

    Without this a run that goes on from an earlier checkpoint would later be resumed from one of its past.

    Returns:
        The steps of the deleted checkpoints.
    """
    with writing(run.checkpoints, what="checkpoints", advice=run.advice):
        for rest in (*run.checkpoints.glob(".new-*"), *run.checkpoints.glob(".old-*")):
            if rest.is_symlink():
                rest.unlink()
            else:
                shutil.rmtree(rest)
        later = [path for path in list_checkpoints(run) if step_of(path) > step]
        for path in reversed(later):
            _delete(path)
        best = run.checkpoints / "best"
        if best.is_symlink() and not best.exists():
            best.unlink()
    return [step_of(path) for path in later]


def list_checkpoints(run: Run) -> list[Path]:
    """Finished checkpoints, oldest first.

    Example:
        >>> list_checkpoints(Run(Path("runs/of-nobody")))
        []
    """
    found = [path for path in run.checkpoints.glob("step-*") if path.is_dir() and re.fullmatch(r"step-\d+", path.name)]
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    """The step in a checkpoint's name.

    Example:
        >>> step_of(Path("step-000500"))
        500
    """
    return int(checkpoint.name.removeprefix("step-"))


def find_checkpoint(run: Run, which: str = "last") -> Path:
    """A run's checkpoint: "last", "best", or a step number.

    Raises:
        UserError: there is none such; the message lists what there is.
    """
    present = list_checkpoints(run)
    if not present:
        raise UserError(
            f"expected a checkpoint in {str(run.folder)!r}, got none, for the run ended before its first; "
            "start it anew with mixtura train"
        )
    names = {str(step_of(path)): path for path in present} | {"last": present[-1]}
    if (best := run.checkpoints / "best").is_symlink():
        names["best"] = run.checkpoints / best.readlink()
    if which not in names:
        raise UserError(f"expected --checkpoint to be one of {', '.join(names)} in {str(run.folder)!r}, got {which!r}")
    return names[which]


def load_weights(model: nn.Module, checkpoint: Path) -> None:
    """Fill a model from a checkpoint.

    Raises:
        UserError: the file is missing, cut short, or of another model.
    """
    import safetensors
    from safetensors.torch import load_model

    file = checkpoint / "model.safetensors"
    try:
        load_model(model, str(file))
    except (OSError, safetensors.SafetensorError, RuntimeError) as error:
        raise UserError(_unreadable(file, error)) from error


def load_state(checkpoint: Path) -> dict[str, Any]:
    """Everything but the weights: optimizer, random numbers, data position, counters.

    Raises:
        UserError: the file is missing or cut short.
    """
    file = checkpoint / "state.pt"
    try:
        state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError) as error:
        raise UserError(_unreadable(file, error)) from error
    except pickle.UnpicklingError as error:  # its text is advice to trust the file
        raise UserError(_unreadable(file, ValueError("not a run's state"))) from error
    if not isinstance(state, dict) or not state.keys() >= STATE:
        raise UserError(_unreadable(file, ValueError("not a run's state")))
    return state


def _unreadable(file: Path, error: Exception) -> str:
    others = [step_of(path) for path in list_checkpoints(Run(file.parents[2])) if path != file.parent]
    advice = f"take another with --checkpoint {others[-1]}" if others else "there is no other; train anew"
    return f"expected a whole checkpoint in {file}, got an unreadable one ({_first_line(error)}); {advice}"


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
