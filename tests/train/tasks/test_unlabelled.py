"""What classifiers say of texts and images without labels."""

import csv
import io
import json
import shutil

import pytest
import torch
from PIL import Image

from mixtura.cli import main
from mixtura.train.data.config import DataConfig
from mixtura.train.tasks.classification import ClassificationConfig
from tests.train.tasks import test_classification, test_vision

WORDS = test_classification.WORDS


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    assert main(test_classification.command(folder, test_classification.write_rows(folder))) == 0
    return folder / "runs" / "tiny"


def test_texts_without_labels(run, tmp_path, capsys):
    texts = ["wave salt", "hill road", "wind star", " ".join(["wave"] * 15 + ["road"])]
    (tmp_path / "new.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    assert main(["predict", str(run), str(tmp_path / "new.jsonl")]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row[""] for row in rows] == ["1", "2", "3", "4"]
    assert [row["class"] for row in rows] == ["sea", "land", "sky", "sea"]
    assert sum(float(rows[0][name]) for name in WORDS) == pytest.approx(1, abs=1e-5)


class Counting(torch.nn.Module):
    """Two classes; the logit of the second is the logarithm of how many tokens a chunk has."""

    def __init__(self):
        super().__init__()
        self.device = torch.nn.Parameter(torch.zeros(()))

    def forward(self, ids_BL, *, mask_BL):
        count_B = mask_BL.sum(1).float()
        return torch.stack([torch.zeros_like(count_B), count_B.log()], 1)


def test_a_long_text_is_the_mean_of_its_chunks(run, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    shutil.copy(run / "tokenizer.json", folder)
    (folder / "classes.txt").write_text("few\nmany\n")
    (tmp_path / "a.txt").write_text("x" * 6)
    config = ClassificationConfig(data=DataConfig(seq_len=4, val_tokens=4, batch_size=1))
    said = config.predict(Counting(), str(tmp_path / "a.txt"), folder=folder).columns
    many = (4 * 4 / 5 + 2 * 2 / 3) / 6  # four tokens, then two
    assert [said["few"][0], said["many"][0]] == pytest.approx([1 - many, many])
    assert (said[""], said["class"]) == (["a.txt"], ["many"])


def test_a_text_without_a_token_is_named(run, tmp_path, capsys):
    (tmp_path / "new.csv").write_text('text\nwave\n""\n')
    assert main(["predict", str(run), str(tmp_path / "new.csv")]) == 2
    assert "new.csv, row 3: expected a text, got an empty one; leave it out" in capsys.readouterr().err


def test_images_without_labels(tmp_path, capsys):
    assert main(test_vision.command(tmp_path)) == 0
    new = tmp_path / "new"
    (new / "more").mkdir(parents=True)
    for name, size in (("b.png", 8), ("more/a.png", 20)):
        Image.new("RGB", (size, size), (200, 10, 10)).save(new / name)
    (new / "notes.txt").write_text("no image")
    capsys.readouterr()
    run = tmp_path / "runs" / "tiny"
    assert main(["predict", str(run), str(new)]) == 0
    shown = capsys.readouterr()
    table = list(csv.DictReader(io.StringIO(shown.out)))
    assert [row[""] for row in table] == ["b.png", "more/a.png"]
    grey = [{name: row[name] for name in map(str, range(10))} for row in table]
    assert grey[0] == grey[1]  # the same colour at another size
    assert table[0]["class"] == max(grey[0], key=lambda name: float(grey[0][name]))
    assert shown.err == "left out: 1 files of other kinds\n"
    assert main(["predict", str(run), str(tmp_path / "nowhere")]) == 2
    assert "nowhere: expected a folder of images, found none; check --data" in capsys.readouterr().err
