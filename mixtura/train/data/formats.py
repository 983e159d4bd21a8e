"""One file of a user's text -> its rows; every defect of a file becomes one line that names the file and the place."""

import csv
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixtura.errors import UserError

TABLES = (".jsonl", ".csv", ".parquet")
# fmt: off
TEXTS = (
    ".txt", ".md", ".rst", ".org", ".tex", ".html", ".xml", ".json", ".yaml", ".yml", ".toml", ".css", ".sql", ".sh",
    ".py", ".c", ".h", ".cpp", ".js", ".ts", ".java", ".go", ".rs",
)
# fmt: on
# csv keeps this limit globally and as a C long, which has 32 bits on Windows.
_CSV_FIELD_BYTES = 2**31 - 1


@dataclass(frozen=True)
class Row:
    """One document of a file: its place there ("" for a whole file), its text, and its domain if a column names it."""

    place: str
    text: str
    domain: str | None = None


def read_rows(path: Path, *, text_column: str = "text", domain_column: str = "") -> Iterator[Row]:
    """Read one file: a table (.jsonl, .csv, .parquet) row by row, anything else as one UTF-8 text.

    Raises:
        UserError: when the file cannot be read or is not UTF-8, a line is not JSON, or a column is missing.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder, "a.jsonl")
        ...     _ = file.write_text('{"text": "one", "language": "en"}')
        ...     list(read_rows(file, domain_column="language"))
        [Row(place='1', text='one', domain='en')]
    """
    kind = path.suffix.lower()
    try:
        if kind not in TABLES:
            yield Row("", decode(path.read_bytes(), path))
            return
        tables = {".jsonl": _jsonl, ".csv": _csv, ".parquet": _parquet}
        for place, values in tables[kind](path, tuple(filter(None, (text_column, domain_column)))):
            where = f"{path}, {'row' if kind == '.parquet' else 'line'} {place}"
            domain = _domain(values[domain_column], domain_column, where) if domain_column else None
            yield Row(place, _text(values[text_column], text_column, where), domain)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


def decode(data: bytes, path: Path, *, start: int = 0) -> str:
    r"""Decode UTF-8 (with or without byte order mark); an error counts its bytes from `start`.

    Raises:
        UserError: naming the file and the byte that is not UTF-8.

    Example:
        >>> decode(b"\xef\xbb\xbfcaf\xc3\xa9", Path("menu.txt"))
        'café'
    """
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        target = path.with_suffix(f".utf8{path.suffix}")
        raise UserError(
            f"{path}: expected UTF-8 text, got byte 0x{data[error.start]:02x} at offset {start + error.start}; "
            f"convert it: iconv -f LATIN1 -t UTF-8 {path} > {target}"
        ) from error


def _text(value: Any, column: str, where: str) -> str:
    """A null is an empty document, which the caller counts and drops."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise UserError(f"{where}: expected text in column {column!r}, got {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{where}: expected Unicode text in column {column!r}, got half of a surrogate pair at character "
            f"{error.start}; repair that line"
        ) from error
    return value


def _domain(value: Any, column: str, where: str) -> str:
    if not isinstance(value, str | int) or value == "":
        raise UserError(f"{where}: expected a domain's name in column {column!r}, got {value!r}")
    return str(value)


def _check_columns(wanted: tuple[str, ...], present: list[str], where: str) -> None:
    for column, option in zip(wanted, ("data.text_column", "data.domain_column"), strict=False):
        if column not in present:
            raise UserError(f"{where}: expected column {column!r}, got {', '.join(present) or 'none'}; set --{option}")


def _jsonl(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    start = 0
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            text = decode(line, path, start=start).strip()
            start += len(line)
            if not text:
                continue
            try:
                value = json.loads(text)
            except (json.JSONDecodeError, RecursionError) as error:
                raise UserError(f"{path}, line {number}: expected one JSON object per line, got: {error}") from error
            if not isinstance(value, dict):
                raise UserError(f"{path}, line {number}: expected a JSON object, got {type(value).__name__}")
            _check_columns(columns, list(value), f"{path}, line {number}")
            yield str(number), value


def _csv(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    text = decode(path.read_bytes(), path)
    limit = csv.field_size_limit(_CSV_FIELD_BYTES)
    try:
        table = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        _check_columns(columns, list(table.fieldnames or ()), str(path))
        for values in table:
            yield str(table.line_num), values
    except csv.Error as error:
        # The reader counts the rows it could read, and the broken one begins after them.
        raise UserError(f"{path}, line {table.line_num + 1}: expected comma-separated values, got: {error}") from error
    finally:
        csv.field_size_limit(limit)


def _parquet(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    from mixtura.train.data.arrow import parquet_rows  # late: it needs numpy

    rows = parquet_rows(path, columns, check=lambda present: _check_columns(columns, present, str(path)))
    yield from ((str(number), values) for number, values in enumerate(rows, start=1))
