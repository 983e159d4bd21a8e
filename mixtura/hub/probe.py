"""A few logits kept beside a checkpoint: whoever loads it sees at once whether every tensor came to its place."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mixtura.errors import UserError
from mixtura.hub.library import logits_of, one_line, read_config

FILE = "mixtura_probe.json"
SEQUENCES, LENGTH, COLUMNS = 4, 16, 64
# Relative, by norm: what another order of sums may change, by the dtype of the weights.
TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Token ids, and what the right model gives for them.

    Attributes:
        ids: (B, L).
        columns: the tokens whose logits are kept.
        logits: float32 (B, L, columns).

    Example:
        >>> take(lambda ids: torch.zeros(*ids.shape, 10), vocab_size=10, context=8).logits.shape
        torch.Size([4, 8, 10])
    """

    ids: Tensor
    columns: Tensor
    logits: Tensor

    def write(self, folder: Path) -> Path:
        """Store it beside a checkpoint."""
        path = folder / FILE
        values = {"ids": self.ids.tolist(), "columns": self.columns.tolist(), "logits": self.logits.tolist()}
        path.write_text(json.dumps(values) + "\n", encoding="utf-8")
        return path

    @torch.no_grad()
    def difference(self, forward: Callable[[Tensor], Tensor]) -> float:
        """Norm of the difference of a model's logits over the norm of the right ones; NaN where either is."""
        got = forward(self.ids)[..., self.columns].float().cpu()
        return float((got - self.logits).norm() / self.logits.norm().clamp(min=1e-30))


@torch.no_grad()
def take(forward: Callable[[Tensor], Tensor], *, vocab_size: int, context: int) -> Probe:
    """Ask a model: the same random ids each time, all tokens of a small vocabulary or evenly spaced ones.

    Example:
        >>> take(lambda ids: torch.zeros(*ids.shape, 1000), vocab_size=1000, context=8).columns[:3].tolist()
        [0, 15, 31]
    """
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(vocab_size, (SEQUENCES, min(LENGTH, context)), generator=generator)
    columns = torch.linspace(0, vocab_size - 1, min(COLUMNS, vocab_size)).long()
    return Probe(ids=ids, columns=columns, logits=forward(ids)[..., columns].float().cpu())


def read(folder: Path) -> Probe | None:
    """The probe beside a checkpoint, or None where there is none.

    Raises:
        UserError: it is damaged.

    Example:
        >>> read(Path("nowhere")) is None
        True
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        ids, columns = torch.tensor(values["ids"]), torch.tensor(values["columns"])
        return Probe(ids=ids, columns=columns, logits=torch.tensor(values["logits"], dtype=torch.float32))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"expected a probe in '{path}', got {one_line(error)}; delete it to load unchecked") from error


def check(folder: Path, forward: Callable[[Tensor], Tensor], *, dtype: torch.dtype) -> float | None:
    """Compare a model with the probe beside a checkpoint; gives the difference, or None where there is no probe.

    Raises:
        UserError: the logits differ by more than rounding.

    Example:
        >>> check(Path("nowhere"), lambda ids: ids, dtype=torch.float32) is None
        True
    """
    probe = read(folder)
    if probe is None:
        return None
    difference = probe.difference(forward)
    if not difference <= TOLERANCE[dtype]:
        raise UserError(
            f"expected the logits that '{folder / FILE}' holds, got others (relative difference {difference:.1e}): "
            "a tensor is swapped, transposed or changed; get the checkpoint again"
        )
    return difference


def write_probe(folder: str | Path) -> Path:
    """Let transformers itself say what a checkpoint gives, and store that beside it, for `load` to check against.

    Raises:
        UserError: no checkpoint, or one that transformers does not read.

    Example:
        >>> write_probe("nowhere")
        Traceback (most recent call last):
        ...
        mixtura.errors.UserError: expected a checkpoint's folder with a config.json, got 'nowhere'
    """
    folder = Path(folder)
    config = read_config(folder)
    probe = take(
        lambda ids: logits_of(folder, ids), vocab_size=config.vocab_size, context=config.max_position_embeddings
    )
    return probe.write(folder)
