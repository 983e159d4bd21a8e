"""What a run folder holds, read at the border: cleaned of anything unsafe, thinned so that a page can show it.

A run of 100,000 steps with many experts logs about a gigabyte, so the metrics are read line by line and only means
over neighbouring steps are kept.
"""

import json
import math
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mixtura.errors import UserError
from mixtura.observe.metrics import imbalance, load_share

_MAX_POINTS = 1500
_MAX_LAYER_POINTS = 12_000  # of all layers together: a page with 24 layers gets 500 points a curve
# Characters that reorder the text around them, so that what one reads is not what is there.
_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


@dataclass(frozen=True, kw_only=True)
class LayerHistory:
    """One MoE layer over time, as means over neighbouring steps; NaN where nothing was logged.

    Shapes:
        step: P numbers; share: (P, E), rows sum to 1; imbalance, dropped, entropy: (P,).

    Example:
        >>> nan = torch.full((1,), torch.nan)
        >>> LayerHistory(step=(1,), share=torch.ones(1, 1), imbalance=nan, dropped=nan, entropy=nan).share.shape
        torch.Size([1, 1])
    """

    step: tuple[int, ...]
    share: Tensor
    imbalance: Tensor
    dropped: Tensor
    entropy: Tensor


@dataclass(frozen=True, kw_only=True)
class History:
    """The metrics of a run: one entry per step in the tuples, NaN where a step did not log it.

    `validation` maps a group of held-out data to its losses, `scores` a figure's name to its values; both have entries
    only for the steps in `evaluated`, which are positions in `step`. `notes` says in plain words what was
    wrong with the file.

    Example:
        >>> clocks = {"step": (1,), "seconds": (0.1,), "items": (64,)}
        >>> series = {"loss": (2.0,), "speed": (900.0,), "evaluated": (), "validation": {}, "scores": {}}
        >>> History(**clocks, **series, layers={}, notes=()).loss
        (2.0,)
    """

    step: tuple[int, ...]
    seconds: tuple[float, ...]
    items: tuple[float, ...]
    loss: tuple[float, ...]
    speed: tuple[float, ...]
    evaluated: tuple[int, ...]
    validation: Mapping[str, tuple[float, ...]]
    scores: Mapping[str, tuple[float, ...]]
    layers: Mapping[str, LayerHistory]
    notes: tuple[str, ...]


def visible(text: str) -> str:
    r"""Text in which control characters, bidirectional marks and lone surrogates show as escapes; newline and tab stay.

    Example:
        >>> visible("a\tb\u202ec\x00")
        'a\tb\\u202ec\\u0000'
    """
    if text.isascii() and text.isprintable():
        return text
    hidden = (c in _BIDI or (unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t") for c in text)
    return "".join(f"\\u{ord(c):04x}" if hide else c for c, hide in zip(text, hidden, strict=True))


def clean(value: Any) -> Any:
    r"""A JSON value with every text made visible and every non-finite number turned into None.

    Example:
        >>> clean({"a\u202e": [float("nan"), 1.5, "x"]})
        {'a\\u202e': [None, 1.5, 'x']}
    """
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {visible(str(key)): clean(item) for key, item in value.items()}
    if isinstance(value, list):
        return [clean(item) for item in value]
    return value


def read_json(path: Path) -> dict[str, Any]:
    """The cleaned JSON object in a file.

    Raises:
        UserError: the file is missing, cannot be read as JSON, or holds something other than an object.

    Example:
        >>> read_json(Path("nowhere/config.json"))
        Traceback (most recent call last):
        ...
        mixtura.errors.UserError: expected a file 'nowhere/config.json', got none; is this the folder of a run?
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"expected a file '{path}', got none; is this the folder of a run?") from None
    except ValueError as error:
        raise UserError(f"expected JSON in '{path}', got {error}; delete it or write it again") from None
    if not isinstance(value, dict):
        raise UserError(f"expected a JSON object in '{path}', got {type(value).__name__}; delete it or write it again")
    cleaned: dict[str, Any] = clean(value)
    return cleaned


def read_history(path: Path) -> History:
    """The metrics of a run, from its metrics.jsonl; lines that cannot be read are left out and named in `notes`.

    Where steps were run again after a resume, the later line counts.

    Raises:
        UserError: the file is missing or has no complete step, or a layer changes its number of experts.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "metrics.jsonl"
        >>> written = path.write_text('{"step": 1, "loss": 2.5}\\n{"step": 2, "lo')
        >>> history = read_history(path)
        >>> history.loss, history.notes
        ((2.5,), ('The last line of metrics.jsonl is cut short and was left out.',))
    """
    if not path.is_file():
        raise UserError(f"expected a file '{path}', got none; is this the folder of a run?")
    offsets, layers, notes = _index(path)
    if not offsets:
        raise UserError(f"expected at least one complete step in '{path}', got none; train for a step first")
    points = min(len(offsets), _MAX_POINTS, max(200, _MAX_LAYER_POINTS // max(1, layers)))
    return _gather(list(offsets), _rows(path, offsets.values()), points, notes)


def finite(value: Any) -> float:
    """A number as it came, and NaN for anything that is not a number.

    Example:
        >>> finite(2), finite("2")
        (2.0, nan)
    """
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else math.nan


def mean(values: Sequence[float]) -> float:
    """Mean of the finite values; NaN when there are none.

    Example:
        >>> mean([1.0, math.nan, 3.0])
        2.0
    """
    kept = [value for value in values if math.isfinite(value)]
    return sum(kept) / len(kept) if kept else math.nan


def _step(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    known = isinstance(row, dict) and isinstance(row.get("step"), int)
    return row if known else None


def _index(path: Path) -> tuple[dict[int, int], int, tuple[str, ...]]:
    """Byte offset of the line of each step, in order; the number of layers; notes on what was left out."""
    offsets: dict[int, int] = {}
    layers: set[str] = set()
    unreadable, repeated, offset, cut = 0, 0, 0, False
    with path.open("rb") as file:
        for line in file:
            row = _step(line)
            cut = row is None and bool(line.strip())
            unreadable += cut
            if row is not None:
                while offsets and next(reversed(offsets)) >= row["step"]:
                    offsets.popitem()
                    repeated += 1
                offsets[row["step"]] = offset
                layers.update(_named(row, "load"))
            offset += len(line)
    notes = []
    if cut:
        notes.append("The last line of metrics.jsonl is cut short and was left out.")
    if unreadable - cut:
        notes.append(f"{unreadable - cut} unreadable lines inside metrics.jsonl were left out.")
    if repeated:
        notes.append(f"{repeated} steps were run again after a resume; the later values are shown.")
    return offsets, len(layers), tuple(notes)


def _rows(path: Path, offsets: Iterable[int]) -> Iterator[dict[str, Any]]:
    with path.open("rb") as file:
        for offset in offsets:
            file.seek(offset)
            row: dict[str, Any] = json.loads(file.readline())
            yield row


def _named(row: dict[str, Any], key: str) -> dict[str, Any]:
    value = row.get(key)
    return {visible(name): item for name, item in value.items()} if isinstance(value, dict) else {}


def _gather(steps: list[int], rows: Iterator[dict[str, Any]], points: int, notes: tuple[str, ...]) -> History:
    series: dict[str, list[float]] = {"seconds": [], "items": [], "loss": [], "items_per_s": []}
    evaluated: list[int] = []
    validation: dict[str, list[float]] = {}
    scores: dict[str, list[float]] = {}
    layers: dict[str, _Layer] = {}
    for position, row in enumerate(rows):
        for name, values in series.items():
            values.append(finite(row.get(name)))
        load, dropped, doubt = _named(row, "load"), _named(row, "dropped"), _named(row, "entropy")
        for name in load:
            layers.setdefault(name, _Layer(name))
        for name, layer in layers.items():
            layer.add(
                position * points // len(steps), steps[position], load.get(name), dropped.get(name), doubt.get(name)
            )
        losses = _named(row, "val_loss")
        if losses:
            _extend(validation, losses, length=len(evaluated))
            _extend(scores, _named(row, "val_score"), length=len(evaluated))
            evaluated.append(position)
    return History(
        step=tuple(steps),
        seconds=tuple(series["seconds"]),
        items=tuple(series["items"]),
        loss=tuple(series["loss"]),
        speed=tuple(series["items_per_s"]),
        evaluated=tuple(evaluated),
        validation={group: tuple(known) for group, known in validation.items()},
        scores={name: tuple(known) for name, known in scores.items()},
        layers={name: layer.history() for name, layer in layers.items()},
        notes=notes,
    )


def _extend(series: dict[str, list[float]], values: Mapping[str, Any], *, length: int) -> None:
    """Append one value to each series; what was not there before gets gaps in front."""
    for name in values:
        series.setdefault(name, [math.nan] * length)
    for name, known in series.items():
        known.append(finite(values.get(name)))


class _Layer:
    """Means over buckets of neighbouring steps; a bucket is closed when a step of the next one comes."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.experts: int | None = None
        self.bucket = -1
        self.open: list[tuple[int, list[float] | None, float, float]] = []
        self.closed: list[tuple[int, Tensor | None, float, float, float]] = []

    def add(self, bucket: int, step: int, load: Any, dropped: Any, doubt: Any) -> None:
        if bucket != self.bucket:
            self._close()
            self.bucket = bucket
        if isinstance(load, list):
            self.experts = self.experts or len(load)
            if len(load) != self.experts or not load:
                raise UserError(
                    f"expected {self.experts or 'some'} load shares for layer '{self.name}' at step {step}, "
                    f"got {len(load)}; keep the metrics of one model in one file"
                )
        self.open.append((step, _usable(load), finite(dropped), finite(doubt)))

    def _close(self) -> None:
        if not self.open:
            return
        steps, loads, dropped, doubt = zip(*self.open, strict=True)
        usable = [load for load in loads if load is not None]
        share_E, peak = None, math.nan
        if usable:
            share_PE = load_share(usable)
            share_E, peak = share_PE.mean(0), float(imbalance(share_PE).mean())
        self.closed.append((steps[len(steps) // 2], share_E, peak, mean(dropped), mean(doubt)))
        self.open = []

    def history(self) -> LayerHistory:
        self._close()
        unknown_E = torch.full((self.experts or 1,), torch.nan, dtype=torch.float64)
        step, share, peak, dropped, doubt = zip(*self.closed, strict=True)
        return LayerHistory(
            step=step,
            share=torch.stack([unknown_E if share_E is None else share_E for share_E in share]),
            imbalance=torch.tensor(peak, dtype=torch.float64),
            dropped=torch.tensor(dropped, dtype=torch.float64),
            entropy=torch.tensor(doubt, dtype=torch.float64),
        )


def _usable(load: Any) -> list[float] | None:
    """Shares that can be averaged: numbers, none negative, not all zero; a step without them leaves a gap."""
    if not isinstance(load, list):
        return None
    try:
        total = sum(load)
    except TypeError:
        return None
    return load if 0 < total < math.inf and min(load) >= 0 else None
