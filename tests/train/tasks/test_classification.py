import json
import random

import pytest
import torch

from mixtura.cli import main
from mixtura.errors import UserError
from mixtura.models.encoder import EncoderConfig
from mixtura.train.data.config import DataConfig
from mixtura.train.tasks.classification import ClassificationConfig, confusion, f1
from tests.train.tiny import TIMES

WORDS = {"sea": ["wave", "salt", "tide", "ship"], "land": ["hill", "tree", "road", "barn"], "sky": ["wind", "star"]}
OPTIONS = {
    "data.domain-column": "label",
    "data.vocab-size": 257,
    "data.seq-len": 24,
    "data.batch-size": 16,
    "data.val-fraction": 0.2,
    "data.val-tokens": 960,
    "model.dim": 16,
    "model.hidden": 16,
    "model.heads": 2,
    "model.num-experts": 4,
    "optim.lr": 0.01,
    "optim.warmup": 4,
    "steps": 60,
    "eval-interval": 30,
    "checkpoint-interval": 20,
    "device": "cpu",
    "threads": 1,
    "name": "tiny",
}


def write_rows(folder, *, labels=tuple(WORDS), rows=240):
    draw = random.Random(0)
    lines = []
    for number in range(rows):
        label = labels[number % len(labels)]
        text = " ".join([*draw.choices(WORDS[label], k=draw.randint(1, 8)), str(number)])
        lines.append(json.dumps({"text": text, "label": label}))
    path = folder / "rows.jsonl"
    path.write_text("\n".join(lines))
    return path


def command(folder, path, **options):
    where = {"data.path": path, "data.cache": folder / "cache", "out": folder / "runs"}
    given = {name.replace("__", ".").replace("_", "-"): value for name, value in options.items()}
    arguments = [f"--{name}={value}" for name, value in ({**where, **OPTIONS} | given).items()]
    return ["train", "classify-tiny", *arguments]


def metrics(run):
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{name: value for name, value in row.items() if name not in TIMES} for row in lines]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    assert main(command(folder, write_rows(folder))) == 0
    return folder / "runs" / "tiny"


def test_texts_are_told_apart(run):
    last = metrics(run)[-1]
    assert last["val_score"]["macro F1"] > 0.95
    assert set(last["val_loss"]) == {"sea", "land", "sky", "mean"}
    assert last["parts"]["accuracy"] > 0.9
    assert (run / "classes.txt").read_text().split() == sorted(WORDS)


def test_the_report_shows_what_is_taken_for_what(run):
    page = (run / "report.html").read_text()
    assert "What is taken for what" in page
    assert 'id="tokens"' in page
    assert 'id="generated"' not in page
    seen = json.loads((run / "observations.json").read_text())
    assert seen["domains"] == sorted(WORDS)
    assert [sample["domain"] for sample in seen["samples"]] == sorted(WORDS)
    ((counts,),) = [list(layer.values()) for layer in list(seen["layers"].values())[-1:]]
    assert all(sum(row) > 0 for row in counts)


def test_a_run_goes_on_to_the_same_numbers(run, tmp_path, capsys):
    before = metrics(run)
    assert main(["resume", str(run), "--checkpoint", "40"]) == 0
    assert metrics(run) == before
    assert main(["eval", str(run)]) == 0
    shown = capsys.readouterr().out
    assert "nats/text" in shown
    assert "macro F1" in shown
    assert main(["generate", str(run), "--prompt", "a"]) == 2
    assert "expected a run of a language model, got" in capsys.readouterr().err


def test_classes_of_different_size_can_count_the_same(tmp_path):
    path = write_rows(tmp_path)
    rows = path.read_text().splitlines()
    path.write_text("\n".join(row for number, row in enumerate(rows) if "sky" not in row or number % 4 == 0))
    data = DataConfig(path=str(path), domain_column="label", seq_len=16, batch_size=8, val_fraction=0.3, val_tokens=16)
    config = ClassificationConfig(data=DataConfig(**{**vars(data), "cache": str(tmp_path / "cache")}))
    task = ClassificationConfig(data=config.data, class_weight="balanced").prepare()
    counts = task.train.places[:, 0].bincount()
    torch.testing.assert_close(task.weight * counts, torch.full((3,), counts.sum() / 3))
    assert config.prepare().weight is None


def test_figures_of_a_confusion_table():
    labels, said = torch.tensor([0, 0, 0, 1, 2, 2]), torch.tensor([0, 0, 1, 1, 1, 2])
    table = confusion(labels, said, classes=3)
    assert table.tolist() == [[2, 1, 0], [0, 1, 0], [0, 1, 1]]
    assert f1(table).tolist() == pytest.approx([0.8, 0.5, 2 / 3])


def test_one_class_is_none(tmp_path, capsys):
    assert main(command(tmp_path, write_rows(tmp_path, labels=("sea",)))) == 2
    assert "at least two classes, got only 'sea'; classes are folders" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_row_without_its_label_is_named(tmp_path, capsys):
    path = write_rows(tmp_path)
    path.write_text(path.read_text() + '\n{"text": "no label"}')
    assert main(command(tmp_path, path)) == 2
    assert "rows.jsonl" in (error := capsys.readouterr().err)
    assert "label" in error


def test_sizes_that_belong_to_the_data_are_refused():
    for change, option in (({"vocab_size": 9}, "vocab-size"), ({"context": 9}, "context")):
        with pytest.raises(UserError, match=f"expected no --model.{option}, got 9"):
            ClassificationConfig(model=EncoderConfig(**change)).check()
    with pytest.raises(UserError, match="recompute_interval: expected at least 0, got -1"):
        ClassificationConfig(recompute_interval=-1)
