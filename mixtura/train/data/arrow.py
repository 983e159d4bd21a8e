"""CSV and Parquet files through pyarrow. The only file that imports it."""

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mixtura.errors import UserError


def parquet_rows(
    path: Path, columns: Sequence[str], *, check: Callable[[list[str]], None]
) -> Iterator[Mapping[str, Any]]:
    """The rows of a Parquet file, one by one, after `check` has seen the names of its columns.

    Raises:
        UserError: pyarrow is missing, or the file is no Parquet file.
    """
    arrow = _pyarrow(path)
    from pyarrow import parquet

    with path.open("rb") as file:
        try:
            table = parquet.ParquetFile(file)
            check(list(table.schema_arrow.names))
            for batch in table.iter_batches(columns=list(columns)):
                yield from batch.to_pylist()
        except (arrow.ArrowException, OSError, UnicodeDecodeError) as error:
            raise _unreadable(path, error, "a Parquet file") from error


def read_distinct(path: Path) -> dict[str, tuple[np.ndarray, list[Any]]]:
    """A whole table, column by column: int64 (rows,), each row's place in the list of different values; -1 is null.

    A CSV file's first line names its columns, and its values are texts; those of a Parquet file have their types.

    Raises:
        UserError: pyarrow is missing, the file is of another kind, is damaged, has no row, or a column twice, or one
            of lists.
    """
    arrow = _pyarrow(path)
    kind = path.suffix.lower()
    if kind not in (".csv", ".tsv", ".parquet"):
        raise UserError(f"{path}: expected a table (.csv, .tsv, .parquet), got {kind or 'no ending'}")
    try:
        table = _csv(path, "\t" if kind == ".tsv" else ",") if kind != ".parquet" else _parquet(path)
    except FileNotFoundError as error:
        raise UserError(f"{path}: expected a file, got none of that name") from error
    except (arrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, error, "a Parquet file" if kind == ".parquet" else "comma-separated values") from error
    names = table.column_names
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"{path}: expected every column once, got {', '.join(map(repr, twice))} more than once")
    if not table.num_rows:
        raise UserError(f"{path}: expected at least one row under the columns' names, got none")
    found = {}
    for name, column in zip(names, table.columns, strict=True):
        try:
            encoded = column.dictionary_encode().unify_dictionaries().combine_chunks()
        except arrow.ArrowNotImplementedError as error:
            raise UserError(f"{path}, column {name!r}: expected one value per row, got {column.type}") from error
        codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
        found[name] = (codes, encoded.dictionary.to_pylist())
    return found


def _csv(path: Path, delimiter: str) -> Any:
    import pyarrow as arrow
    from pyarrow import csv as reader

    # What is no UTF-8 is told by the reader below, which knows its row and column.
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        try:
            names = next(csv.reader(file, delimiter=delimiter), [])
        except csv.Error as error:
            raise UserError(f"{path}, line 1: expected the columns' names, got: {error}") from error
    return reader.read_csv(
        path,
        # One thread: only then does an error know its row.
        read_options=reader.ReadOptions(use_threads=False),
        parse_options=reader.ParseOptions(newlines_in_values=True, delimiter=delimiter),
        convert_options=reader.ConvertOptions(
            column_types={name: arrow.string() for name in names}, strings_can_be_null=False
        ),
    )


def _parquet(path: Path) -> Any:
    from pyarrow import parquet

    with path.open("rb") as file:
        return parquet.ParquetFile(file).read()


def _pyarrow(path: Path) -> Any:
    try:
        import pyarrow
    except ImportError as error:
        kind = "Parquet" if path.suffix.lower() == ".parquet" else "tables"
        raise UserError(f"{path}: reading {kind} needs pyarrow; run: pip install 'mixtura[parquet]'") from error
    return pyarrow


def _unreadable(path: Path, error: Exception, expected: str) -> UserError:
    reason = str(error).partition("\n")[0]
    return UserError(f"{path}: expected {expected}, got: {reason}")
