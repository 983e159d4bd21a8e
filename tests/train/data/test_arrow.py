"""Whole tables through pyarrow, and what is told of damaged ones."""

import sys

import numpy as np
import pyarrow as arrow
import pytest
from pyarrow import parquet

from mixtura.errors import UserError
from mixtura.train.data.arrow import parquet_rows, read_distinct


def test_every_value_of_a_csv_file_is_a_text(tmp_path):
    file = tmp_path / "a.csv"
    file.write_bytes('\ufeffa,b\n1,"x\ny"\n1,\n'.encode())
    table = read_distinct(file)
    assert table["a"][1] == ["1"]
    assert table["b"][1] == ["x\ny", ""]
    assert table["b"][0].tolist() == [0, 1]


def test_values_of_a_parquet_file_have_types(tmp_path):
    parquet.write_table(arrow.table({"a": [1.5, None, 1.5], "b": [True, False, None]}), tmp_path / "a.parquet")
    table = read_distinct(tmp_path / "a.parquet")
    assert table["a"][1] == [1.5]
    np.testing.assert_array_equal(table["a"][0], [0, -1, 0])
    assert table["b"][1] == [True, False]


def test_tabs(tmp_path):
    (tmp_path / "a.tsv").write_text("a\tb\n1,5\t2\n")
    assert read_distinct(tmp_path / "a.tsv")["a"][1] == ["1,5"]


def test_rows_of_chosen_columns_after_the_check(tmp_path):
    parquet.write_table(arrow.table({"a": [1, 2], "b": [3, 4]}), tmp_path / "a.parquet")
    seen = []
    assert list(parquet_rows(tmp_path / "a.parquet", ["b"], check=seen.extend)) == [{"b": 3}, {"b": 4}]
    assert seen == ["a", "b"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"a,b\n1,2\n3\n", "expected comma-separated values, got: .*Row #3: Expected 2 columns, got 1"),
        ("a.csv", b"a,b\n1,\xff\n", "a.csv: expected comma-separated values, got: .*invalid UTF8"),
        ("a.csv", b"", "a.csv: expected comma-separated values, got: Empty CSV file"),
        ("a.csv", b"a,b\n", "a.csv: expected at least one row under the columns' names, got none"),
        ("a.csv", b"a,a\n1,2\n", "a.csv: expected every column once, got 'a' more than once"),
        ("a.xls", b"x", r"a.xls: expected a table \(.csv, .tsv, .parquet\), got .xls"),
        ("a.parquet", b"x", "a.parquet: expected a Parquet file, got"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_distinct(tmp_path / name)


def test_no_file_and_no_single_values(tmp_path):
    with pytest.raises(UserError, match=r"a.csv: expected a file, got none of that name"):
        read_distinct(tmp_path / "a.csv")
    parquet.write_table(arrow.table({"a": [[1], [2]]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a.parquet, column 'a': expected one value per row, got list"):
        read_distinct(tmp_path / "a.parquet")


def test_without_pyarrow_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"reading tables needs pyarrow; run: pip install 'mixtura\[parquet\]'"):
        read_distinct(tmp_path / "a.csv")
