"""metrics.jsonl: one JSON object per optimizer step, cut back to a checkpoint's step on resume."""

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from mixtura.errors import UserError
from mixtura.observe.record import LayerRecord, RoutingLog
from mixtura.train.files import write_file, writing


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What a step leaves for the log; tensors stay on the device, so that making it waits for nothing.

    Attributes:
        total: scalar, the task's loss summed over what `weight` counts.
        weight: scalar.
        items: tokens, images, rows ... of the step.
        lr: learning rate of the step, without the roles' factors.
        grad_norm: scalar, norm of all gradients before clipping.
        aux: raw value of each balance loss, mean over layers and micro-batches.
        parts: further figures of the task, mean over micro-batches.
        log: what every layer routed.
    """

    total: Tensor
    weight: Tensor
    items: int
    lr: float
    grad_norm: Tensor
    aux: dict[str, Tensor]
    parts: dict[str, Tensor]
    log: RoutingLog


def measure(
    result: StepResult, *, mean: Callable[[dict[str, Any]], dict[str, Any]] = lambda values: values
) -> dict[str, Any]:
    """What a step's row of metrics holds besides counts and times; its loss is in the task's unit.

    Reading the numbers waits for the device. One such wait per step is what a live display and a log of every step
    cost; in return the time between two calls is that of the whole step.

    Args:
        result: of this process.
        mean: of nested dicts and lists of floats, the mean over the processes of a run; none: this one alone.
    """
    layers = {name: _layer(records) for name, records in result.log.items()}
    values = mean(
        {
            "total": float(result.total),
            "weight": float(result.weight),
            "aux": {name: float(value) for name, value in result.aux.items()},
            "parts": {name: float(value) for name, value in result.parts.items()},
            "load": {name: layer[0] for name, layer in layers.items()},
            "dropped": {name: layer[1] for name, layer in layers.items()},
            "entropy": {name: layer[2] for name, layer in layers.items()},
        }
    )
    return {
        "loss": number(values["total"] / values["weight"]) if values["weight"] else None,
        "lr": result.lr,
        "grad_norm": number(float(result.grad_norm)),
        "aux": {name: number(value) for name, value in values["aux"].items()},
        **({"parts": {name: number(value) for name, value in values["parts"].items()}} if values["parts"] else {}),
        "load": {name: [round(share, 6) for share in shares] for name, shares in values["load"].items()},
        "dropped": {name: number(value) for name, value in values["dropped"].items()},
        "entropy": {name: number(value) for name, value in values["entropy"].items()},
    }


def _layer(records: Sequence[LayerRecord]) -> tuple[list[float], float, float]:
    counts_E = torch.stack([r.counts_E() for r in records]).sum(0)
    share_E = counts_E / counts_E.sum().clamp(min=1)
    dropped = torch.stack([r.dropped_share() for r in records]).mean()
    entropy = torch.stack([r.entropy() for r in records]).mean()
    return share_E.tolist(), float(dropped), float(entropy)


def number(value: float) -> float | None:
    """A float that JSON can hold: None where it is infinite or not a number.

    Example:
        >>> number(1.5), number(float("nan"))
        (1.5, None)
    """
    return value if math.isfinite(value) else None


class MetricsFile:
    """Appends rows; every row is handed to the system at once, so that a killed run keeps them.

    Args:
        path: metrics.jsonl; rows after `after_step` are cut off.
        after_step: the step of the checkpoint that the run goes on from.
        advice: ends the message when nothing can be written.

    Raises:
        UserError: a damaged row among those to keep, a full disk, or a folder that cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "metrics.jsonl")
        ...     with MetricsFile(path, after_step=0, advice="") as file:
        ...         file.write({"step": 1}); file.write({"step": 2})
        ...     MetricsFile(path, after_step=1, advice="").close()
        ...     path.read_text()
        '{"step": 1}\\n'
    """

    def __init__(self, path: Path, *, after_step: int, advice: str) -> None:
        self._path, self._advice = path, advice
        if path.exists():
            write_file(path, "".join(f"{line}\n" for line in lines_up_to(path, after_step)))
        with self._writing():
            # Unbuffered: after a failed write nothing waits for another try when the file is closed.
            self._file = path.open("ab", buffering=0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, row: Mapping[str, Any]) -> None:
        """Append one row."""
        rest = json.dumps(row, allow_nan=False).encode() + b"\n"
        with self._writing():
            while rest:  # a disk that is almost full takes a part
                rest = rest[self._file.write(rest) :]

    def sync(self) -> None:
        """Wait until all rows are on the disk: before a checkpoint, which must not know of steps that the rows lack."""
        with self._writing():
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _writing(self) -> AbstractContextManager[None]:
        return writing(self._path.parent, what=self._path.name, advice=self._advice)


def lines_up_to(path: Path, step: int) -> list[str]:
    """Whole lines of the steps up to `step`; what a crash left behind them does not matter.

    Raises:
        UserError: a damaged line among them.

    Example:
        >>> lines_up_to(Path("runs/of-nobody/metrics.jsonl"), 5)
        []
    """
    lines: list[str] = []
    last = 0
    for raw in path.read_bytes().splitlines() if path.exists() else ():
        try:
            line = raw.decode()
            here = int(json.loads(line)["step"])
        except (ValueError, KeyError, TypeError) as error:
            if last >= step:
                break
            raise UserError(
                f"expected a step's metrics in line {len(lines) + 1} of {path}, got something else ({error}); "
                "repair that line, or move the file away"
            ) from error
        if here > step:
            break
        lines.append(line)
        last = here
    return lines
