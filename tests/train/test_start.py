import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mixtura.cli import main
from mixtura.errors import UserError
from mixtura.train.inspect import load_model
from mixtura.train.run import Run
from mixtura.train.start import finetuned, start_from
from tests.train.tasks.test_vision import command as images
from tests.train.tiny import command, write_corpus


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """A run whose tokens were learned from its text."""
    folder = tmp_path_factory.mktemp("learned")
    assert main(command(folder, data__vocab_size=280, optim__lr=0.01)) == 0
    return folder / "runs" / "tiny"


def other_text(folder):
    folder.mkdir()
    path = write_corpus(folder, verses=90)
    path.write_text(path.read_text().replace("cat", "dog"))
    return path


def test_a_run_starts_with_the_best_weights_of_another_and_its_tokens(learned, tmp_path, capsys):
    path = other_text(tmp_path / "text")
    options = ["--data.path", path, "--out", tmp_path / "runs", "--name", "tuned", "--steps", 4, "--optim.warmup", 0]
    assert main(["finetune", str(learned), *map(str, options), "--eval-interval", "1"]) == 0
    tuned = Run(tmp_path / "runs" / "tuned")
    assert tuned.tokenizer.read_bytes() == Run(learned).tokenizer.read_bytes()
    config = tuned.read_config()
    assert config.optim.lr == pytest.approx(0.003)
    assert (config.model.dropout, config.start) == (0.1, str(learned))
    first = json.loads(tuned.metrics.read_text().splitlines()[0])
    assert first["loss"] < 3.5  # a fresh model has 5.5
    capsys.readouterr()
    assert main(["resume", str(tuned.folder), "--checkpoint", "4"]) == 0


def test_any_kind_of_training_can_start_from_its_own(tmp_path):
    assert main(images(tmp_path, "vit-tiny")) == 0
    run = tmp_path / "runs" / "tiny"
    options = ["--out", str(tmp_path / "runs"), "--name", "tuned", "--steps", "2", "--threads", "1"]
    assert main(["finetune", str(run), *options]) == 0
    assert len((tmp_path / "runs" / "tuned" / "metrics.jsonl").read_text().splitlines()) == 2


def test_the_weights_are_those_of_the_best_checkpoint(learned):
    config = finetuned(learned)
    task = config.prepare()
    model = task.config.build_model()
    start_from(model, task)
    theirs, _ = load_model(Run(learned), checkpoint="best")
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


def test_without_a_start_nothing_happens(learned):
    task = replace(finetuned(learned), start="").prepare()
    model = task.config.build_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    start_from(model, task)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: replace(c, model=replace(c.model, hidden=24)), "expected a model of the sizes of"),
        (lambda c: replace(c, start=f"{c.start}-none"), "which does not exist"),
        (lambda c: replace(c, data=replace(c.data, tokenizer="", vocab_size=270)), "data with the tokenizer.json of"),
        (lambda c: replace(c, data=replace(c.data, tokenizer=__file__)), "expected a tokenizer that mixtura wrote"),
    ],
    ids=["sizes", "no run", "other tokens", "no tokenizer"],
)
def test_a_start_that_does_not_fit_is_refused(learned, change, message):
    def start():
        task = change(finetuned(learned)).prepare()
        start_from(task.config.build_model(), task)

    with pytest.raises(UserError, match=message):
        start()


def test_a_damaged_checkpoint_is_told(learned, tmp_path):
    copied = tmp_path / "copied"
    shutil.copytree(learned, copied, symlinks=True)
    for file in copied.glob("checkpoints/*/model.safetensors"):
        file.write_bytes(file.read_bytes()[:20])
    task = replace(finetuned(copied), start=str(copied)).prepare()
    with pytest.raises(UserError, match="expected a whole checkpoint in"):
        start_from(task.config.build_model(), task)


def test_the_command_says_what_it_needs(capsys):
    assert main(["finetune", "--help"]) == 0
    assert "mixtura finetune RUN" in capsys.readouterr().out
    assert main(["finetune", "--steps", "3"]) == 2
    assert "expected the folder of a run before all options" in capsys.readouterr().err
    assert main(["finetune", str(Path("of-nobody"))]) == 2
