"""What training rows teach, and every surprise of the others."""

import json

import numpy as np
import pytest

from mixtura.errors import UserError
from mixtura.train.data.schema import NONE, UNSEEN, Schema, encode, learn
from mixtura.train.data.table import Columns, read_sheet

TRAIN = "shop,price,click\nA,1,no\nA,3,yes\nB,,no\nB,5,\nC,7,no\n"


def sheet(folder, text, name="a.csv"):
    (folder / name).write_text(text)
    return read_sheet(folder / name)


def every(table):
    return np.ones(table.rows, dtype=bool)


def columns(**roles):
    return Columns(**{"labels": ("click",), **roles})


def learned(folder, text=TRAIN, rows=None, **roles):
    table = sheet(folder, text)
    return learn(table, columns(**roles), every(table) if rows is None else rows)


def test_only_training_rows_teach(tmp_path):
    schema = learned(tmp_path, rows=np.array([True, True, True, True, False]))
    (shop,), (price,), (click,) = schema.categories, schema.numbers, schema.labels
    assert shop.values == ("A", "B")
    assert (price.mean, price.has_missing) == (3.0, True)
    assert price.deviation == pytest.approx(np.std([1, 3, 5]))
    assert (click.kind, click.classes) == ("binary", ("no", "yes"))


def test_rows_by_hand(tmp_path):
    schema = learned(tmp_path)
    table = encode(sheet(tmp_path, "click,price,shop\nyes,5,B\n,,D\nno,100,\n", "b.csv"), schema)
    assert table.categories_NC[:, 0].tolist() == [3, UNSEEN, NONE]
    mean, deviation = 4.0, np.std([1, 3, 5, 7])
    np.testing.assert_allclose(table.numbers_NM[:, 0], [(5 - mean) / deviation, 0, 8.0], rtol=1e-6)
    np.testing.assert_allclose(table.numbers_NM[:, 1], [2 * (2 / 3) - 1, 0, 1], atol=0.02)
    assert table.numbers_NM[:, 2].tolist() == [0, 1, 0]
    np.testing.assert_array_equal(table.labels["click"], [1, np.nan, 0])
    assert table.notes == (
        "shop: 1 of 3 values unseen or rare in training, 1 missing",
        "price: 1 of 3 values missing, 1 beyond 8 deviations",
        "click (binary): 2 rows labelled, 1 not; no 1, yes 1",
    )


def test_rare_categories_train_the_unseen_one(tmp_path):
    assert learned(tmp_path).categories[0].values == ("A", "B")
    assert learned(tmp_path, min_count=1).categories[0].values == ("A", "B", "C")


def test_codes_can_be_categories(tmp_path):
    schema = learned(tmp_path, categorical=("price",), min_count=1)
    assert [c.name for c in schema.categories] == ["shop", "price"]
    assert schema.numbers == ()


@pytest.mark.parametrize(
    ("values", "kind", "classes"),
    [
        (["0", "1", "1"], "binary", ("0", "1")),
        (["10", "9", "9"], "binary", ("9", "10")),
        (["b", "a", "c"], "multiclass", ("a", "b", "c")),
        (["1", "2", "3"], "multiclass", ("1", "2", "3")),
        (["1.5", "2", "3"], "regression", ()),
        ([str(n) for n in range(30)], "regression", ()),
    ],
)
def test_the_kind_of_a_label_follows_its_values(tmp_path, values, kind, classes):
    text = "shop,click\n" + "".join(f"A,{value}\n" for value in values)
    (label,) = learned(tmp_path, text).labels
    assert (label.kind, label.classes) == (kind, classes)


def test_regressions_are_scaled(tmp_path):
    table = sheet(tmp_path, TRAIN)
    schema = learn(table, Columns(labels=("price:regression",), ignore=("click",)), every(table))
    label = encode(table, schema).labels["price"]
    assert np.nanmean(label) == pytest.approx(0, abs=1e-6)
    assert np.nanstd(label) == pytest.approx(1)
    assert np.isnan(label[2])


def test_weights_of_rows(tmp_path):
    table = sheet(tmp_path, "shop,click,w\nA,1,0\nB,0,2.5\n")
    schema = learn(table, columns(weight="w"), every(table))
    assert encode(table, schema).weight_N.tolist() == [0, 2.5]
    assert [c.name for c in schema.categories] == ["shop"]


def test_a_schema_survives_json(tmp_path):
    schema = learned(tmp_path)
    assert Schema.from_dict(json.loads(json.dumps(schema.to_dict()))) == schema


MANY = "n,click\n" + "".join(f"{i},{i % 2}\n" for i in range(20))


@pytest.mark.parametrize(
    ("text", "roles", "message"),
    [
        (MANY.replace("\n7,1", "\n7x,1"), {}, "a.csv, row 8, column 'n': expected a number as in 19 of 20 rows"),
        ("n,click\n1,0\nx,1\n", {"numeric": ("n",)}, "a.csv, row 2, column 'n': expected a number, got 'x'"),
        ("n,click\n1,\n2,\n", {}, "a.csv, column 'click': expected labels, got none in 2 training rows"),
        ("n,click\n1,0\n2,0\n", {}, "a.csv, column 'click': expected at least two classes .* got only '0'"),
        ("n,click\n1,0\n2,1\n3,7\n", {"labels": ("click:binary",)}, "a.csv, row 3, column 'click': expected two cl"),
        ("n,click\n1,a\n2,b\n", {"labels": ("click:regression",)}, "row 1, column 'click': expected a number, got"),
        ("n,click\n,0\n,1\n", {}, "a.csv, column 'n': expected a value in the training rows, got none"),
        ("click\n0\n1\n", {}, "a.csv: expected columns beside the labels, got none that is an input"),
        ("n,click\n1,0\n", {"labels": ("buy",)}, "a.csv: expected the label column 'buy', got columns n, click"),
        ("n,click\n1,0\n", {"labels": ()}, "a.csv: expected at least one label column, got none"),
        ("n,click\n1,0\n", {"ignore": ("x",)}, "a.csv: expected the ignored column 'x'"),
    ],
)
def test_what_cannot_be_learned(tmp_path, text, roles, message):
    with pytest.raises(UserError, match=message):
        learned(tmp_path, text, **roles)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("shop,price,click\nA,1,no\nA,x,no\n", "b.csv, row 2, column 'price': expected a number, got 'x'"),
        ("shop,price,click\nA,1,maybe\n", "b.csv, row 1, column 'click': expected a class among no, yes, as in train"),
        ("shop,click\nA,no\n", "b.csv: expected the numeric column 'price', got columns shop, click"),
    ],
)
def test_other_rows_that_do_not_fit(tmp_path, text, message):
    schema = learned(tmp_path)
    with pytest.raises(UserError, match=message):
        encode(sheet(tmp_path, text, "b.csv"), schema)


@pytest.mark.parametrize("value", ["-1", "x", ""])
def test_weights_that_are_none(tmp_path, value):
    table = sheet(tmp_path, f"shop,click,w\nA,1,1\nB,0,{value}\n")
    schema = learn(table, columns(weight="w"), every(table))
    with pytest.raises(UserError, match="row 2, column 'w': expected a weight of at least 0, got"):
        encode(table, schema)
