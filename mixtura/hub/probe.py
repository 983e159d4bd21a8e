"""A few logits and one number per tensor beside a checkpoint: whoever loads it sees whether all came to its place.

The logits are what counts, but an expert that no probed token chooses has no share in them. Each tensor's number is its
product with fixed vectors along its dimensions, so that halves, rows or experts that change places change it too.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mixtura.errors import UserError
from mixtura.hub.library import one_line

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
        sums: each tensor's number, by our names; empty where only the logits are known.

    Example:
        >>> take(lambda ids: torch.zeros(*ids.shape, 10), vocab_size=10, context=8).logits.shape
        torch.Size([4, 8, 10])
    """

    ids: Tensor
    columns: Tensor
    logits: Tensor
    sums: Mapping[str, float] = field(default_factory=dict)

    def write(self, folder: Path) -> Path:
        """Store it beside a checkpoint."""
        path = folder / FILE
        values: dict[str, Any] = {
            "ids": self.ids.tolist(),
            "columns": self.columns.tolist(),
            "logits": self.logits.tolist(),
        }
        values["sums"] = dict(self.sums)
        path.write_text(json.dumps(values) + "\n", encoding="utf-8")
        return path

    @torch.no_grad()
    def difference(self, forward: Callable[[Tensor], Tensor]) -> float:
        """Norm of the difference of a model's logits over the norm of the right ones; NaN where either is."""
        got = forward(self.ids)[..., self.columns].float().cpu()
        return float((got - self.logits).norm() / self.logits.norm().clamp(min=1e-30))


@torch.no_grad()
def take(
    forward: Callable[[Tensor], Tensor], *, vocab_size: int, context: int, tensors: Mapping[str, Tensor] | None = None
) -> Probe:
    """Ask a model: the same random ids each time, all tokens of a small vocabulary or evenly spaced ones.

    Args:
        forward: token ids to logits.
        vocab_size: V.
        context: the longest sequence.
        tensors: the model's own by their names.

    Example:
        >>> take(lambda ids: torch.zeros(*ids.shape, 1000), vocab_size=1000, context=8).columns[:3].tolist()
        [0, 15, 31]
    """
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(vocab_size, (SEQUENCES, min(LENGTH, context)), generator=generator)
    columns = torch.linspace(0, vocab_size - 1, min(COLUMNS, vocab_size)).long()
    sums = {name: weigh(tensor) for name, tensor in (tensors or {}).items()}
    return Probe(ids=ids, columns=columns, logits=forward(ids)[..., columns].float().cpu(), sums=sums)


def weigh(tensor: Tensor) -> float:
    """A tensor's number: its product with a fixed vector along each dimension, in fp32, expert by expert.

    Example:
        >>> x = torch.arange(6.0).view(2, 3)
        >>> weigh(x) != weigh(x.flip(0)) and weigh(x) != weigh(x.flip(1)) and weigh(x.double()) == weigh(x)
        True
    """
    x = tensor.detach()
    if x.ndim > 2:
        x = torch.tensor([weigh(part) for part in x])
    x = x.to(device="cpu", dtype=torch.float32)
    while x.ndim:
        n = x.shape[-1]
        x = x @ torch.cos(torch.arange(n, dtype=torch.float64) * 2**0.5 * x.ndim).float()
    return float(x)


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
        sums = {name: float(value) for name, value in values["sums"].items()}
        return Probe(ids=ids, columns=columns, logits=torch.tensor(values["logits"], dtype=torch.float32), sums=sums)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"expected a probe in '{path}', got {one_line(error)}; delete it to load unchecked") from error


def check(
    folder: Path,
    forward: Callable[[Tensor], Tensor],
    *,
    dtype: torch.dtype,
    tensors: Mapping[str, Tensor] | None = None,
) -> float | None:
    """Compare a model with the probe beside a checkpoint; gives the difference, or None where there is no probe.

    Args:
        folder: the checkpoint.
        forward: token ids to logits.
        dtype: of the weights, which says how much is rounding.
        tensors: the model's own by their names; None: only the logits are compared.

    Raises:
        UserError: the logits, or a tensor, differ by more than rounding.

    Example:
        >>> check(Path("nowhere"), lambda ids: ids, dtype=torch.float32) is None
        True
    """
    probe = read(folder)
    if probe is None:
        return None
    difference = probe.difference(forward)
    odd = [name for name, value in (tensors or {}).items() if not _is_kept(value, probe.sums.get(name), dtype=dtype)]
    if not difference <= TOLERANCE[dtype] or odd:
        where = f"in {odd[0]}: it" if odd else "somewhere: a tensor"
        raise UserError(
            f"expected the logits and tensors that '{folder / FILE}' tells of, got others (relative difference of the "
            f"logits {difference:.1e}), {where} is swapped, transposed or changed; get the checkpoint again"
        )
    return difference


def _is_kept(tensor: Tensor, expected: float | None, *, dtype: torch.dtype) -> bool:
    if expected is None:
        return True
    allowed = TOLERANCE[dtype] * float(torch.linalg.vector_norm(tensor.detach(), dtype=torch.float32))
    return abs(weigh(tensor) - expected) <= allowed + 1e-30
