"""Columns as they stand, their roles, and which rows are held out."""

import numpy as np
import pyarrow as arrow
import pytest
from pyarrow import parquet

from mixtura.errors import UserError
from mixtura.train.data.table import Columns, held_out, number, read_sheet


def sheet(folder, text):
    (folder / "a.csv").write_text(text)
    return read_sheet(folder / "a.csv")


def test_texts_that_stand_for_missing_are_one_value(tmp_path):
    column = sheet(tmp_path, "a,b\nx ,1\nNA,2\n?,3\n,4\n x,5\n").columns["a"]
    assert column.values == ("x", None)
    assert column.codes_N.tolist() == [0, 1, 1, 1, 0]
    assert column.counts().tolist() == [2, 3]
    assert column.first(1) == 2


def test_csv_and_parquet_say_the_same(tmp_path):
    parquet.write_table(
        arrow.table({"a": [1.0, None, 2.0], "b": [True, False, True], "c": ["x", "", None]}), tmp_path / "a.parquet"
    )
    typed = read_sheet(tmp_path / "a.parquet").columns
    plain = sheet(tmp_path, "a,b,c\n1,1,x\n,0,\n2,1,\n").columns
    for name in "abc":
        first, second = ([c.values[code] for code in c.codes_N] for c in (typed[name], plain[name]))
        assert first == second


@pytest.mark.parametrize(("text", "value"), [("1", 1.0), ("-2.5e3", -2500.0), (" 3", 3.0)])
def test_numbers(text, value):
    assert number(text) == value


@pytest.mark.parametrize("text", ["", "a", "inf", "nan", "1_000", "1,5", None])
def test_no_numbers(text):
    assert np.isnan(number(text))


def test_groups_stay_together(tmp_path):
    table = sheet(tmp_path, "user,y\n" + "".join(f"u{i % 40},{i}\n" for i in range(400)))
    is_held = held_out(table, fraction=0.3, group="user")
    users = np.arange(400) % 40
    assert not set(users[is_held]) & set(users[~is_held])
    assert 0.1 < is_held.mean() < 0.5
    np.testing.assert_array_equal(is_held, held_out(table, fraction=0.3, group="user"))
    assert (is_held != held_out(table, fraction=0.3, group="user", seed=1)).any()


def test_labels_may_name_their_kind():
    kinds = Columns(labels=("a", "b:regression", "c:d", "x:auto")).kinds()
    assert kinds == {"a": "auto", "b": "regression", "c:d": "auto", "x": "auto"}


def test_rows_by_themselves(tmp_path):
    is_held = held_out(sheet(tmp_path, "y\n" + "1\n" * 2000), fraction=0.1)
    assert 0.07 < is_held.mean() < 0.13


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda t: held_out(t, fraction=0.5, group="z"), "a.csv: expected the group column 'z', got columns u, y"),
        (lambda t: held_out(t, fraction=0.5, group="u"), "a.csv, row 2, column 'u': expected a value that tells"),
        (lambda t: held_out(t, fraction=1e-9), "expected rows for training and for validation, got 3 rows"),
        (lambda t: held_out(t, fraction=1e-9, group="y"), "got 3 rows of 3 groups; add rows"),
        (lambda _: Columns(labels=("a",), ignore=("a",)), "expected one role for each column, got two for 'a'"),
        (lambda _: Columns(labels=("a",), min_count=0), "expected min_count of at least 1, got 0"),
    ],
)
def test_bad_input(tmp_path, make, message):
    table = sheet(tmp_path, "u,y\na,1\n,2\nb,3\n")
    with pytest.raises(UserError, match=message):
        make(table)
