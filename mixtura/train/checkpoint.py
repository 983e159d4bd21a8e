"""Checkpoints: safetensors weights and the state of everything else, written aside, synced, renamed.

A checkpoint is a folder `step-000500` with `model.safetensors` and `state.pt`. The last two and the best are kept.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mixtura.errors import UserError
from mixtura.train.files import new_folder
from mixtura.train.run import Run, point_link

KEEP = 2


def save_checkpoint(run: Run, model: nn.Module, state: Mapping[str, Any], *, step: int, best_step: int) -> Path:
    """Write the checkpoint of a step, then delete those that are neither among the last two nor the best.

    Raises:
        UserError: the disk is full or cannot be written; older checkpoints are untouched.
    """
    import safetensors
    from safetensors.torch import save_model

    folder = run.checkpoints / f"step-{step:06d}"
    with new_folder(folder, what="the checkpoint") as temporary:
        try:
            save_model(model, str(temporary / "model.safetensors"))
            torch.save(dict(state), temporary / "state.pt")
        except (safetensors.SafetensorError, RuntimeError) as error:  # how both report a full disk
            raise UserError(
                f"cannot write the checkpoint in {run.checkpoints} ({error}); "
                f"free some space, then mixtura resume {run.folder}"
            ) from error
    if best_step == step:
        point_link(run.checkpoints / "best", folder.name)
    kept = {*list_checkpoints(run)[-KEEP:], run.checkpoints / f"step-{best_step:06d}"}
    for old in list_checkpoints(run):
        if old not in kept:
            shutil.rmtree(old)
    return folder


def list_checkpoints(run: Run) -> list[Path]:
    """Finished checkpoints, oldest first.

    Example:
        >>> list_checkpoints(Run(Path("runs/of-nobody")))
        []
    """
    return sorted(path for path in run.checkpoints.glob("step-*") if path.is_dir())


def find_checkpoint(run: Run, which: str = "last") -> Path:
    """A run's checkpoint: "last", "best", or a step number.

    Raises:
        UserError: there is none such; the message lists what there is.
    """
    present = list_checkpoints(run)
    if which == "last" and present:
        return present[-1]
    folder = run.checkpoints / ("best" if which == "best" else f"step-{int(which):06d}" if which.isdigit() else which)
    if not folder.is_dir():
        there = ", ".join(str(int(path.name.removeprefix("step-"))) for path in present) or "none"
        raise UserError(f"expected checkpoint {which!r} in {str(run.folder)!r}, got steps: {there}")
    return folder


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
    return state


def _unreadable(file: Path, error: Exception) -> str:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    others = [p.name.removeprefix("step-").lstrip("0") for p in list_checkpoints(Run(file.parents[2]))]
    other = next((step for step in reversed(others) if f"{int(step):06d}" not in file.parent.name), None)
    advice = f"take another checkpoint with --checkpoint {other}" if other else "there is no other checkpoint"
    return f"expected a whole checkpoint in {file}, got an unreadable one ({reason}); {advice}"
