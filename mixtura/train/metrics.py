"""metrics.jsonl: one JSON object per optimizer step, cut back to a checkpoint's step on resume."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mixtura.observe.record import LayerRecord, RoutingLog
from mixtura.train.files import write_file


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What a step leaves for the log; tensors stay on the device, so that making it waits for nothing.

    Attributes:
        nats: scalar, cross-entropy summed over the step's tokens.
        num_bytes: scalar, bytes of text those tokens stand for.
        tokens: tokens of the step.
        lr: learning rate of the step, without the roles' factors.
        grad_norm: scalar, norm of all gradients before clipping.
        aux: raw value of each balance loss, mean over layers and micro-batches.
        log: what every layer routed.
    """

    nats: Tensor
    num_bytes: Tensor
    tokens: int
    lr: float
    grad_norm: Tensor
    aux: dict[str, Tensor]
    log: RoutingLog


def step_row(result: StepResult, *, step: int, tokens: int, seconds: float, step_seconds: float) -> dict[str, Any]:
    """The JSON object of one step, without its validation losses.

    `tokens` and `seconds` are sums since the start of the run; losses are in nats per byte.
    """
    layers = {name: _layer(records) for name, records in result.log.items()}
    return {
        "step": step,
        "tokens": tokens,
        "seconds": round(seconds, 4),
        "loss": _number(result.nats / result.num_bytes),
        "lr": result.lr,
        "grad_norm": _number(result.grad_norm),
        "tokens_per_s": round(result.tokens / step_seconds, 1),
        "aux": {name: _number(value) for name, value in result.aux.items()},
        "load": {name: layer[0] for name, layer in layers.items()},
        "dropped": {name: layer[1] for name, layer in layers.items()},
        "entropy": {name: layer[2] for name, layer in layers.items()},
    }


def _layer(records: Sequence[LayerRecord]) -> tuple[list[float], float | None, float | None]:
    counts_E = torch.stack([r.counts_E() for r in records]).sum(0)
    share_E = counts_E / counts_E.sum().clamp(min=1)
    dropped = torch.stack([r.dropped_share() for r in records]).mean()
    entropy = torch.stack([r.entropy() for r in records]).mean()
    return [round(share, 6) for share in share_E.tolist()], _number(dropped), _number(entropy)


def _number(value: Tensor) -> float | None:
    """A float JSON can hold: null where the loss is not a number."""
    number = float(value)
    return number if math.isfinite(number) else None


class MetricsFile:
    """Appends rows; every row is handed to the system at once, so that a killed run keeps them.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = MetricsFile(Path(folder, "metrics.jsonl"), after_step=0)
        ...     file.write({"step": 1}); file.write({"step": 2}); file.close()
        ...     MetricsFile(Path(folder, "metrics.jsonl"), after_step=1).close()
        ...     Path(folder, "metrics.jsonl").read_text()
        '{"step": 1}\\n'
    """

    def __init__(self, path: Path, *, after_step: int) -> None:
        if path.exists():
            write_file(path, "".join(f"{line}\n" for line in _lines_up_to(path, after_step)))
        self._file = path.open("a", encoding="utf-8")

    def write(self, row: Mapping[str, Any]) -> None:
        """Append one row."""
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _lines_up_to(path: Path, step: int) -> list[str]:
    """Whole lines of steps up to `step`; a line that a crash cut short ends the list."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] > step:
                break
        except json.JSONDecodeError:
            break
        lines.append(line)
    return lines
