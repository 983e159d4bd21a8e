import builtins
import csv
import json

import pyarrow as arrow
import pytest
from pyarrow import parquet

from mixtura.errors import UserError
from mixtura.train.data.formats import Row, read_rows


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def error_of(path, **columns):
    with pytest.raises(UserError) as caught:
        list(read_rows(path, **columns))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_text_keeps_its_line_ends_and_loses_its_byte_order_mark(tmp_path):
    path = write(tmp_path / "a.txt", b"\xef\xbb\xbfone\r\ntwo")
    assert list(read_rows(path)) == [Row("", "one\r\ntwo")]


def test_the_three_tables_give_the_same_rows(tmp_path):
    rows = [{"body": 'a "quoted", long\nline', "topic": "x"}, {"body": "zwölf", "topic": "y"}]
    jsonl = write(tmp_path / "a.jsonl", "\n\n".join(map(json.dumps, rows)) + "\n")
    with (tmp_path / "a.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, ["body", "topic"])
        table.writeheader()
        table.writerows(rows)
    parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    for path in (jsonl, tmp_path / "a.csv", tmp_path / "a.parquet"):
        read = list(read_rows(path, text_column="body", domain_column="topic"))
        assert [(row.text, row.domain) for row in read] == [(row["body"], row["topic"]) for row in rows]
        assert len({row.place for row in read}) == 2


def test_a_csv_field_of_megabytes_is_read_and_the_global_limit_is_put_back(tmp_path):
    limit = csv.field_size_limit()
    path = write(tmp_path / "a.csv", "text\n" + "x" * 2_000_000)
    assert len(next(read_rows(path)).text) == 2_000_000
    list(read_rows(path))
    assert csv.field_size_limit() == limit


def test_a_null_is_an_empty_text(tmp_path):
    assert [row.text for row in read_rows(write(tmp_path / "a.jsonl", '{"text": null}'))] == [""]


@pytest.mark.parametrize("name", ["a.txt", "a.csv"])
def test_bytes_that_are_not_utf8_name_the_file_the_offset_and_the_cure(tmp_path, name):
    message = error_of(write(tmp_path / name, b"text\ncaf\xe9\n"))
    assert f"{tmp_path / name}: expected UTF-8 text, got byte 0xe9 at offset 8" in message
    assert "iconv -f LATIN1 -t UTF-8" in message


def test_the_offset_in_a_jsonl_file_counts_from_its_start(tmp_path):
    content = b'{"text": "a"}\n{"text": "\xe9"}\n'
    assert f"at offset {content.index(0xE9)};" in error_of(write(tmp_path / "a.jsonl", content))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("{text}", "line 2: expected one JSON object per line, got: Expecting property name"),
        ("[1]", "line 2: expected a JSON object, got list"),
        ('{"body": "x"}', "line 2: expected column 'text', got body; set --data.text_column"),
        ('{"text": 5}', "line 2: expected text in column 'text', got int"),
        ('{"text": "\\ud800"}', "line 2: expected Unicode text in column 'text', got half of a surrogate pair"),
        ("[" * 100_000, "line 2: expected one JSON object per line"),
    ],
)
def test_a_bad_json_line_is_named(tmp_path, line, expected):
    path = write(tmp_path / "a.jsonl", f'{{"text": "fine"}}\n{line}\n')
    assert f"{path}, {expected}" in error_of(path)


def test_a_missing_domain_is_named(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"text": "fine", "topic": null}')
    assert "line 1: expected a domain's name in column 'topic', got None" in error_of(path, domain_column="topic")
    assert "expected column 'kind', got text, topic; set --data.domain_column" in error_of(path, domain_column="kind")


def test_a_missing_column_of_a_table_lists_the_columns(tmp_path):
    path = write(tmp_path / "a.csv", "id,body\n1,x\n")
    assert error_of(path) == f"{path}: expected column 'text', got id, body; set --data.text_column"
    assert "expected column 'text', got none" in error_of(write(tmp_path / "b.csv", ""))
    parquet.write_table(arrow.table({"body": ["x"]}), tmp_path / "a.parquet")
    assert "expected column 'text', got body" in error_of(tmp_path / "a.parquet")


def test_a_quote_left_open_is_an_error_and_not_a_long_document(tmp_path):
    assert "line 2: expected comma-separated values, got:" in error_of(write(tmp_path / "a.csv", 'text\n"open\nand on'))


@pytest.mark.parametrize("content", [b"", b"not parquet at all", b"PAR1" + bytes(40) + b"PAR1"])
def test_a_broken_parquet_file_is_named(tmp_path, content):
    path = write(tmp_path / "a.parquet", content)
    assert error_of(path).startswith(f"{path}: expected a Parquet file, got: ")


def test_without_pyarrow_the_error_names_the_extra(tmp_path, monkeypatch):
    real = builtins.__import__

    def no_pyarrow(name, *arguments):
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return real(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", no_pyarrow)
    assert "pip install 'mixtura[parquet]'" in error_of(write(tmp_path / "a.parquet", b""))


def test_a_file_that_is_gone_is_named(tmp_path):
    for name in ("a.txt", "a.jsonl", "a.csv", "a.parquet"):
        assert f"cannot read {tmp_path / name}: No such file" in error_of(tmp_path / name)
