"""The commands of docs/surgery.md, in their order, on a tiny model and with tiny numbers of steps."""

import re
import shlex
from pathlib import Path

import pytest

from mixtura.cli import main
from mixtura.train.loop import resume
from tests.checks import pages
from tests.train.tiny import command, write_corpus

PAGE = Path(__file__).parents[2] / "docs" / "surgery.md"


def commands():
    """Every `mixtura` command of the page, steps and sizes made small."""
    blocks = pages.split(PAGE.read_text(encoding="utf-8"))[1]
    lines = [line for block in blocks if block.language == "bash" for line in block.text.splitlines() if line]
    assert all(line.startswith("mixtura ") for line in lines)
    return [shlex.split(re.sub(r"(--steps) \d+", r"\1 2", line))[1:] for line in lines]


@pytest.mark.filterwarnings("ignore:with k=1 a weight")
def test_the_commands_run_in_their_order(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mixtura.train.branch._train_all", lambda runs, *, jobs: [resume(run.folder) for run in runs])
    monkeypatch.setattr("mixtura.train.loop.finish", lambda *_, **__: None)  # reports are others' tests
    for name in ("prose", "code"):
        (tmp_path / "texts" / name).mkdir(parents=True)
        text = write_corpus(tmp_path / "texts" / name)
        text.write_text(text.read_text().replace("cat", name))
    train, *others = commands()
    assert train[:2] == ["train", "lm-tiny-dense"]
    tiny = command(tmp_path, data__path=tmp_path / "texts", model__num_experts=0, steps=2, out="runs")
    assert main([*train[:2], *tiny[2:], *train[2:]]) == 0
    for arguments in others:
        assert main(arguments) == 0, arguments
    made = {path.name for path in (tmp_path / "runs").iterdir() if not path.is_symlink()}
    assert made == {"seed", "upcycled", "half", "branches"}
    assert "| ensemble |" in (tmp_path / "runs" / "branches" / "comparison.md").read_text()
    assert main(["eval", "runs/branches/mixture"]) == 0
    assert "nats/byte" in capsys.readouterr().out
