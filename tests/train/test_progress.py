import re
import sys

import pytest

from mixtura.cli import main
from mixtura.train.progress import Progress, step_facts
from mixtura.train.tasks.task import Units
from tests.train.tiny import command, rows

UNITS = Units(loss="nats/byte", items="tokens", group="domain")
ROW = {"step": 3, "items_per_s": 12345.6, "loss": 1.5, "load": {}, "dropped": {}}


class Terminal:
    """A stream that says it is a terminal."""

    encoding = "utf-8"

    def __init__(self):
        self.text = ""

    def write(self, text):
        self.text += text
        return len(text)

    def flush(self):
        pass

    def isatty(self):
        return True


def test_facts_of_mixtures_show_the_worst_layer():
    row = ROW | {"load": {"a": [0.5, 0.5], "b": [0.75, 0.25]}, "dropped": {"a": 0.125, "b": None}}
    assert step_facts(row, UNITS) == "12,346 tokens/s  loss 1.500  imbalance 1.50  dropped 12.5%"


def test_a_loss_that_is_not_a_number_is_called_so():
    assert step_facts(ROW | {"loss": None}, UNITS) == "12,346 tokens/s  loss not a number"


def test_a_pipe_gets_plain_lines_for_evaluations_only(capsys):
    with Progress(total=9, done=0, units=UNITS) as progress:
        progress.update(ROW)
        progress.say("[bold]as it is[/bold]")
        progress.evaluated(ROW | {"val_loss": {"a": 1.25, "b": None, "mean": None}})
    assert capsys.readouterr().out == (
        "[bold]as it is[/bold]\n"
        "step      3  val not a number nats/byte  (a 1.250  b not a number)  12,346 tokens/s  loss 1.500\n"
    )


def test_scores_stand_beside_the_loss_and_one_group_is_its_own_mean(capsys):
    with Progress(total=9, done=0, units=Units(loss="nats/image", items="images", group="class")) as progress:
        progress.evaluated(ROW | {"val_loss": {"all": 0.5, "mean": 0.5}, "val_score": {"accuracy": 0.875}})
    assert capsys.readouterr().out == (
        "step      3  val 0.500 nats/image  accuracy 0.875  12,346 images/s  loss 1.500\n"
    )


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_a_terminal_of_any_width_shows_step_and_time_left(monkeypatch, columns):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(sys, "stdout", Terminal())
    row = ROW | {"step": 2500, "load": {"a": [0.5, 0.5]}, "dropped": {"a": 0.0}}
    with Progress(total=3000, done=2499, units=UNITS) as progress:
        progress.update(row)
    shown = re.sub(r"\x1b\[[?\d;]*\w", "", sys.stdout.text).splitlines()[-1]
    assert "2500/3000 -:--:-- " in shown
    assert "12,346 tokens/s  loss 1.500" in shown
    assert ("dropped 0.0%" in shown) == (columns >= 80)


@pytest.mark.parametrize(
    "options",
    [{}, {"model__num_experts": 0}, {"model__capacity_factor": 0.5}],
    ids=["mixture", "dense", "dropping"],
)
def test_training_into_a_pipe_prints_plain_lines(tmp_path, capsys, options):
    assert main(command(tmp_path, **options)) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    assert "\x1b" not in shown.out
    assert "\r" not in shown.out
    lines = shown.out.splitlines()
    assert [line.split()[1] for line in lines if line.startswith("step ")] == ["5", "10", "12"]
    assert ("imbalance" in shown.out) == (options != {"model__num_experts": 0})
    if "model__capacity_factor" in options:
        dropped = rows(tmp_path / "runs" / "tiny")[-1]["dropped"]["blocks.0.feed_forward"]
        assert 0 < dropped < 1
        assert f"dropped {dropped:.1%}" in lines[-2]


def test_a_run_that_diverges_ends_with_a_report(tmp_path, capsys):
    assert main(command(tmp_path, optim__lr=1e30, optim__grad_clip=0)) == 0
    assert "val not a number nats/byte" in capsys.readouterr().out
    run = tmp_path / "runs" / "tiny"
    assert rows(run)[-1]["loss"] is None
    assert main(["generate", str(run), "--checkpoint", "last"]) == 2
    assert "train anew with a lower --optim.lr" in capsys.readouterr().err
    assert main(["eval", str(run), "--checkpoint", "last"]) == 0
    assert "mean  nan nats/byte" in capsys.readouterr().out
