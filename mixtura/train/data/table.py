"""A user's table: what its columns are for, its values as they stand, and which rows are held out.

In a `Column` every different value stands once, so that each is read once and not once per row. Rows are counted from
1, the first one under the columns' names. What the values mean is learned from training rows by `schema`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from mixtura.errors import UserError
from mixtura.train.data.arrow import read_distinct

Kind = Literal["auto", "binary", "multiclass", "regression"]
MISSING = ("", "NA", "N/A", "NaN", "nan", "null", "NULL", "None", "?")


@dataclass(frozen=True, kw_only=True)
class Columns:
    """What the columns of a table are for.

    Raises:
        UserError: a column with two roles, or a number out of its range.

    Example:
        >>> columns = Columns(labels=("click", "stars:regression"), categorical=("shop",))
        >>> columns.kinds(), columns.role("shop")
        ({'click': 'auto', 'stars': 'regression'}, 'categorical')
    """

    labels: tuple[str, ...] = ()
    """Columns to predict, each NAME or NAME:KIND with kind binary, multiclass or regression."""
    numeric: tuple[str, ...] = ()
    """Columns of numbers, even where most of their values do not look so."""
    categorical: tuple[str, ...] = ()
    """Columns of categories, even where their values are numbers (codes)."""
    ignore: tuple[str, ...] = ()
    """Columns that are no input."""
    weight: str = ""
    """Column of rows' weights, at least 0; empty: all count alike."""
    group: str = ""
    """Column (a user's id) whose rows of one value are all training rows or all held out; it is no input."""
    missing: tuple[str, ...] = MISSING
    """Texts that stand for a missing value."""
    min_count: int = 2
    """Categories seen in fewer training rows are read as unseen ones, so that the entry for these is trained."""

    def __post_init__(self) -> None:
        roles = [
            *(_name_and_kind(text)[0] for text in self.labels),
            *self.numeric,
            *self.categorical,
            *self.ignore,
            *filter(None, [self.weight]),
        ]
        if twice := sorted({name for name in roles if roles.count(name) > 1}):
            raise UserError(f"expected one role for each column, got two for {', '.join(map(repr, twice))}")
        if self.min_count < 1:
            raise UserError(f"expected min_count of at least 1, got {self.min_count}")

    def kinds(self) -> dict[str, Kind]:
        """Label -> its kind; auto: as its values look."""
        return dict(map(_name_and_kind, self.labels))

    def role(self, name: str) -> str:
        """Label, weight, ignore, numeric, categorical, or input: what the values decide."""
        if name in self.kinds():
            return "label"
        if name == self.weight:
            return "weight"
        for role in ("ignore", "numeric", "categorical"):
            if name in getattr(self, role):
                return role
        return "ignore" if name == self.group else "input"


def _name_and_kind(text: str) -> tuple[str, Kind]:
    name, _, last = text.rpartition(":")
    for kind in get_args(Kind):
        if name and last == kind:
            return name, kind
    return text, "auto"


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of a file: `values[codes_N]` are its rows; None is a missing one."""

    name: str
    codes_N: np.ndarray
    values: tuple[str | None, ...]

    def counts(self, rows: np.ndarray | None = None) -> np.ndarray:
        """How often each value stands in `rows` (bool): (values,)."""
        return np.bincount(self.codes_N if rows is None else self.codes_N[rows], minlength=len(self.values))

    def first(self, code: int, rows: np.ndarray | None = None) -> int:
        """The row, from 1, in which a value stands first among `rows`."""
        is_there = self.codes_N == code
        return int(np.argmax(is_there if rows is None else is_there & rows)) + 1


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """A file: its name, rows, and columns."""

    path: str
    rows: int
    columns: Mapping[str, Column]

    def column(self, name: str, *, what: str) -> Column:
        """One column.

        Raises:
            UserError: the file has none of that name.
        """
        if name not in self.columns:
            raise UserError(f"{self.path}: expected the {what} column {name!r}, got columns {', '.join(self.columns)}")
        return self.columns[name]

    def wrong(self, column: Column, code: int, expected: str, *, rows: np.ndarray | None = None) -> UserError:
        """The error of a value that is not as expected, with its file, row and column."""
        got = column.values[code]
        return UserError(
            f"{self.path}, row {column.first(code, rows)}, column {column.name!r}: expected {expected}, "
            f"got {'nothing' if got is None else repr(got)}"
        )


def read_sheet(path: str | Path, *, missing: Sequence[str] = MISSING) -> Sheet:
    """Read a .csv, .tsv or .parquet file with names of columns.

    Raises:
        UserError: see `mixtura.train.data.arrow.read_distinct`.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder, "a.csv")
        ...     _ = file.write_text("shop,price\\nA,3\\n,4\\n")
        ...     sheet = read_sheet(file)
        >>> sheet.rows, sheet.columns["shop"].values
        (2, ('A', None))
    """
    columns, rows = {}, 0
    for name, (codes_N, values) in read_distinct(Path(path)).items():
        texts = [
            None if (text := _text(value)) is None or text.strip() in missing else text.strip() for value in values
        ]
        distinct = list(dict.fromkeys([*texts, None] if -1 in codes_N else texts))
        place = {text: number for number, text in enumerate(distinct)}
        # The last one is where code -1, null, leads.
        into = np.array([*(place[text] for text in texts), place.get(None, 0)], dtype=np.int64)
        columns[name] = Column(name=name, codes_N=into[codes_N], values=tuple(distinct))
        rows = len(codes_N)
    return Sheet(path=str(path), rows=rows, columns=columns)


def _text(value: Any) -> str | None:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bool):
        return str(int(value))
    return repr(int(value)) if isinstance(value, float) and value.is_integer() and abs(value) < 1e15 else str(value)


def number(text: str | None) -> float:
    """The finite number that a text is; NaN where it is none.

    Example:
        >>> number("1e3"), number("3,5"), number("inf")
        (1000.0, nan, nan)
    """
    try:
        value = float(text) if text is not None and "_" not in text else math.nan
    except ValueError:
        return math.nan
    return value if math.isfinite(value) else math.nan


def held_out(sheet: Sheet, *, fraction: float, group: str = "", seed: int = 0) -> np.ndarray:
    """Which rows are held out: bool (rows,), by a hash of their number, or of what their `group` column says.

    Raises:
        UserError: a row without a group, or a part without rows.
    """
    if group:
        column = sheet.column(group, what="group")
        if None in column.values:
            raise sheet.wrong(column, column.values.index(None), "a value that tells which rows belong together")
        share = np.array([_share(str(value), seed) for value in column.values])[column.codes_N]
    else:
        share = np.array([_share(str(row), seed) for row in range(sheet.rows)])
    is_held: np.ndarray = share < fraction
    if is_held.all() or not is_held.any():
        raise UserError(
            f"{sheet.path}: expected rows for training and for validation, got {sheet.rows} rows"
            + (f" of {len(sheet.column(group, what='group').values)} groups" if group else "")
            + "; add rows, give a validation file, or set another fraction or seed"
        )
    return is_held


def _share(text: str, seed: int) -> float:
    return int.from_bytes(blake2b(f"{seed}/{text}".encode(), digest_size=8).digest(), "big") / 2**64
