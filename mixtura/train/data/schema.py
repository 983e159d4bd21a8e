"""What training rows teach of a table, and any rows encoded by it: vocabularies, scalings, classes.

Nothing is dropped in silence: unseen categories, missing values, rare ones and rows without a label are counted, and
the counts are the notes of every `Table`.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from mixtura.errors import UserError
from mixtura.train.data.table import Column, Columns, Sheet, number

UNSEEN, NONE, FIRST = 0, 1, 2  # categories: not in the vocabulary; missing; the first value
QUANTILES = 33
MOSTLY = 0.9  # a column of which so many values are numbers is a numeric one, and the others are mistakes
MAX_AUTO_CLASSES = 20
FARTHEST = 8.0  # deviations from the mean; what lies beyond counts as this


@dataclass(frozen=True, kw_only=True)
class Category:
    """What a categorical column was in training: its vocabulary; 0 is an unseen value, 1 a missing one."""

    name: str
    values: tuple[str, ...]

    @property
    def size(self) -> int:
        """Different codes."""
        return len(self.values) + FIRST


@dataclass(frozen=True, kw_only=True)
class Number:
    """What a numeric column was in training: mean, deviation, quantiles, and whether a value was missing."""

    name: str
    mean: float
    deviation: float
    quantiles: tuple[float, ...]
    has_missing: bool

    @property
    def width(self) -> int:
        """Inputs that it becomes: scaled value, place among the quantiles, and 1 where it is missing."""
        return 2 + self.has_missing


@dataclass(frozen=True, kw_only=True)
class Label:
    """What a label was in training: its classes in order, or mean and deviation of a regression."""

    name: str
    kind: Literal["binary", "multiclass", "regression"]
    classes: tuple[str, ...] = ()
    mean: float = 0.0
    deviation: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Schema:
    """Everything that was learned from training rows; plain values, which a checkpoint can hold."""

    categories: tuple[Category, ...]
    numbers: tuple[Number, ...]
    labels: tuple[Label, ...]
    weight: str = ""

    @property
    def numbers_width(self) -> int:
        """M, numeric inputs of a row."""
        return sum(number.width for number in self.numbers)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Schema":
        """Rebuild it from `to_dict`'s values, which JSON may have turned into lists."""
        parts = {"categories": Category, "numbers": Number, "labels": Label}
        built: dict[str, Any] = {
            name: tuple(
                kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in one.items()}) for one in values[name]
            )
            for name, kind in parts.items()
        }
        return cls(**built, weight=values["weight"])


@dataclass(frozen=True, kw_only=True)
class Table:
    """Encoded rows: int64 (N, C) categories, float32 (N, M) numbers, task -> float32 (N,) labels, NaN where missing."""

    categories_NC: np.ndarray
    numbers_NM: np.ndarray
    labels: Mapping[str, np.ndarray]
    weight_N: np.ndarray
    notes: tuple[str, ...]


def learn(sheet: Sheet, columns: Columns, rows: np.ndarray) -> Schema:
    """Vocabularies, scalings and classes from the rows of training alone.

    Args:
        sheet: the file.
        columns: what its columns are for.
        rows: bool (rows,), those of training.

    Raises:
        UserError: a column that is not there, no input, a value that is no number in a column of numbers, a label
            without any value, with one class only, or with more classes than its kind has.

    Example:
        >>> import tempfile
        >>> from mixtura.train.data.table import read_sheet
        >>> from pathlib import Path
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder, "a.csv")
        ...     _ = file.write_text("shop,price,click\\nA,3,no\\nA,5,yes\\nB,,no\\n")
        ...     sheet = read_sheet(file)
        >>> schema = learn(sheet, Columns(labels=("click",)), np.ones(3, dtype=bool))
        >>> schema.labels[0].kind, schema.labels[0].classes, schema.categories[0].values, schema.numbers[0].mean
        ('binary', ('no', 'yes'), ('A',), 4.0)
    """
    kinds = columns.kinds()
    if not kinds:
        raise UserError(f"{sheet.path}: expected at least one label column, got none; give Columns(labels=...)")
    named = {"label": kinds, "numeric": columns.numeric, "categorical": columns.categorical}
    for what, names in (*named.items(), ("ignored", columns.ignore), ("weight", (columns.weight,))):
        for name in filter(None, names):
            sheet.column(name, what=what)
    categories, numbers = [], []
    for column in sheet.columns.values():
        role = columns.role(column.name)
        if role in ("label", "weight", "ignore"):
            continue
        if role == "numeric" or (role == "input" and _is_numeric(sheet, column, rows)):
            numbers.append(_number(sheet, column, rows))
        else:
            categories.append(_category(column, rows, columns.min_count))
    if not (categories or numbers):
        raise UserError(f"{sheet.path}: expected columns beside the labels, got none that is an input")
    labels = tuple(_label(sheet, sheet.columns[name], rows, kind) for name, kind in kinds.items())
    return Schema(categories=tuple(categories), numbers=tuple(numbers), labels=labels, weight=columns.weight)


def _is_numeric(sheet: Sheet, column: Column, rows: np.ndarray) -> bool:
    """Whether training values are numbers; where nearly all are, the others must be mistakes."""
    counts = column.counts(rows)
    is_number = np.array([not np.isnan(number(value)) for value in column.values])
    is_value = np.array([value is not None for value in column.values])
    values, numbers = counts[is_value].sum(), counts[is_number].sum()
    if not values:
        raise UserError(
            f"{sheet.path}, column {column.name!r}: expected a value in the training rows, got none; ignore the column"
        )
    if MOSTLY * values <= numbers < values:
        code = int(np.flatnonzero(is_value & ~is_number & (counts > 0))[0])
        raise sheet.wrong(
            column,
            code,
            f"a number as in {numbers} of {values} rows (or say that the column is categorical, or that this text "
            "stands for a missing value)",
            rows=rows,
        )
    return bool(numbers == values)


def _values(sheet: Sheet, column: Column) -> np.ndarray:
    """The number that each different value is, NaN where it is missing: float64 (values,)."""
    numbers = np.array([number(value) for value in column.values])
    bad = [code for code, value in enumerate(column.values) if value is not None and np.isnan(numbers[code])]
    if bad:
        raise sheet.wrong(column, min(bad, key=column.first), "a number")
    return numbers


def _number(sheet: Sheet, column: Column, rows: np.ndarray) -> Number:
    x = _values(sheet, column)[column.codes_N[rows]]
    known = x[~np.isnan(x)]
    if not len(known):
        raise UserError(f"{sheet.path}, column {column.name!r}: expected numbers in the training rows, got none")
    quantiles = np.unique(np.quantile(known, np.linspace(0, 1, QUANTILES)))
    return Number(
        name=column.name,
        mean=float(known.mean()),
        deviation=float(known.std()) or 1.0,
        quantiles=tuple(quantiles.tolist()),
        has_missing=len(known) < len(x),
    )


def _category(column: Column, rows: np.ndarray, min_count: int) -> Category:
    counts = column.counts(rows)
    known = (
        value for value, count in zip(column.values, counts, strict=True) if value is not None and count >= min_count
    )
    return Category(name=column.name, values=tuple(sorted(known)))


def _label(sheet: Sheet, column: Column, rows: np.ndarray, kind: str) -> Label:
    counts = column.counts(rows)
    present = [value for value, count in zip(column.values, counts, strict=True) if value is not None and count]
    if not present:
        raise UserError(
            f"{sheet.path}, column {column.name!r}: expected labels, got none in {int(rows.sum())} training rows; "
            "leave the task out, or label some rows"
        )
    are_numbers = not any(np.isnan(number(value)) for value in present)
    if kind == "auto":
        kind = _kind(present, are_numbers=are_numbers)
    if kind == "regression":
        known = (x := _values(sheet, column)[column.codes_N[rows]])[~np.isnan(x)]
        return Label(name=column.name, kind="regression", mean=float(known.mean()), deviation=float(known.std()) or 1.0)
    classes = sorted(present, key=number) if are_numbers else sorted(present)
    if len(classes) < 2:
        raise UserError(
            f"{sheet.path}, column {column.name!r}: expected at least two classes in the training rows, got only "
            f"{classes[0]!r}; there is nothing to learn"
        )
    if kind == "binary" and len(classes) > 2:
        third = max((column.values.index(value) for value in classes), key=lambda code: column.first(code, rows))
        raise sheet.wrong(column, third, f"two classes of a binary label, and not {len(classes)}", rows=rows)
    return Label(name=column.name, kind="binary" if kind == "binary" else "multiclass", classes=tuple(classes))


def _kind(present: list[str], *, are_numbers: bool) -> str:
    if len(present) <= 2:
        return "binary"
    whole = are_numbers and all(number(value).is_integer() for value in present)
    return "multiclass" if not are_numbers or (whole and len(present) <= MAX_AUTO_CLASSES) else "regression"


def encode(sheet: Sheet, schema: Schema, rows: np.ndarray | None = None) -> Table:
    """Rows by what training has taught; every surprise is counted in the notes.

    Args:
        sheet: a file.
        schema: of the training rows, of this file or another.
        rows: bool (rows,), which; None: all.

    Raises:
        UserError: a column that is not there, a value that is no number in a numeric column, a class that training has
            not seen, or a weight that is no number of at least 0: names file, row and column.
    """
    rows = np.ones(sheet.rows, dtype=bool) if rows is None else rows
    notes: list[str] = []
    categories = [_codes(sheet, part, rows, notes) for part in schema.categories]
    numbers = [part for one in schema.numbers for part in _scaled(sheet, one, rows, notes)]
    labels = {label.name: _labels(sheet, label, rows, notes) for label in schema.labels}
    count = int(rows.sum())
    return Table(
        categories_NC=np.stack(categories, 1) if categories else np.zeros((count, 0), dtype=np.int64),
        numbers_NM=np.stack(numbers, 1).astype(np.float32) if numbers else np.zeros((count, 0), dtype=np.float32),
        labels=labels,
        weight_N=_weights(sheet, schema.weight, rows),
        notes=tuple(notes),
    )


def _codes(sheet: Sheet, category: Category, rows: np.ndarray, notes: list[str]) -> np.ndarray:
    column = sheet.column(category.name, what="categorical")
    place = {value: code for code, value in enumerate(category.values, start=FIRST)}
    code_of = np.array([NONE if value is None else place.get(value, UNSEEN) for value in column.values], dtype=np.int64)
    codes: np.ndarray = code_of[column.codes_N[rows]]
    unseen, missing = int((codes == UNSEEN).sum()), int((codes == NONE).sum())
    if unseen or missing:
        notes.append(
            f"{category.name}: {unseen:,} of {len(codes):,} values unseen or rare in training, {missing:,} missing"
        )
    return codes


def _scaled(sheet: Sheet, one: Number, rows: np.ndarray, notes: list[str]) -> list[np.ndarray]:
    column = sheet.column(one.name, what="numeric")
    x = _values(sheet, column)[column.codes_N[rows]]
    is_missing = np.isnan(x)
    scaled = np.clip((x - one.mean) / one.deviation, -FARTHEST, FARTHEST)
    place = 2 * np.interp(x, one.quantiles, np.linspace(0, 1, len(one.quantiles))) - 1
    far = int((np.abs((x - one.mean) / one.deviation) > FARTHEST).sum())
    if is_missing.any() or far:
        notes.append(
            f"{one.name}: {int(is_missing.sum()):,} of {len(x):,} values missing, "
            f"{far:,} beyond {FARTHEST:.0f} deviations"
        )
    parts = [np.where(is_missing, 0.0, scaled), np.where(is_missing, 0.0, place)]
    return [*parts, is_missing.astype(np.float64)] if one.has_missing else parts


def _labels(sheet: Sheet, label: Label, rows: np.ndarray, notes: list[str]) -> np.ndarray:
    column = sheet.column(label.name, what="label")
    if label.kind == "regression":
        values = (_values(sheet, column) - label.mean) / label.deviation
    else:
        place: dict[str | None, float] = {name: float(number) for number, name in enumerate(label.classes)}
        strange = [
            int(code) for code in np.flatnonzero(column.counts(rows)) if column.values[code] not in (*place, None)
        ]
        if strange:
            code = min(strange, key=lambda code: column.first(code, rows))
            raise sheet.wrong(column, code, f"a class among {', '.join(label.classes)}, as in training", rows=rows)
        values = np.array([place.get(value, np.nan) for value in column.values])
    found: np.ndarray = values[column.codes_N[rows]].astype(np.float32)
    unlabelled = int(np.isnan(found).sum())
    note = f"{label.name} ({label.kind}): {len(found) - unlabelled:,} rows labelled, {unlabelled:,} not"
    if label.classes:
        counts = [int((found == number).sum()) for number in range(len(label.classes))]
        told = ", ".join(f"{name} {count:,}" for name, count in zip(label.classes, counts, strict=True))
        note += f"; {told}" if len(counts) <= MAX_AUTO_CLASSES else f"; {len(counts)} classes"
    notes.append(note)
    return found


def _weights(sheet: Sheet, name: str, rows: np.ndarray) -> np.ndarray:
    if not name:
        return np.ones(int(rows.sum()), dtype=np.float32)
    column = sheet.column(name, what="weight")
    numbers = np.array([number(value) for value in column.values])
    bad = [int(code) for code in np.flatnonzero(column.counts(rows)) if not numbers[code] >= 0]
    if bad:
        raise sheet.wrong(
            column, min(bad, key=lambda code: column.first(code, rows)), "a weight of at least 0", rows=rows
        )
    found: np.ndarray = numbers[column.codes_N[rows]].astype(np.float32)
    return found
