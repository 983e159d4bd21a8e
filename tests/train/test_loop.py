import json
import math
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch

from mixtura.cli import main
from mixtura.errors import UserError
from mixtura.train.data import DataConfig
from mixtura.train.loop import Counters, train
from mixtura.train.metrics import MetricsFile
from mixtura.train.tasks.language import LanguageConfig
from mixtura.train.tasks.task import Evaluation
from tests.train import kills
from tests.train.tiny import checkpoints, command, rows

NOISY = {
    "model__router": "noisy_topk",
    "model__k": 2,
    "model__router_options": ("jitter", 0.1),
    "model__losses__importance": 0.1,
    "model__losses__load": 0.1,
    "accumulate": 2,
}
CONTROLLED = {"balance__target": 1.05, "balance__rate": 0.5}
SIGMOID = {"model__router": "sigmoid_bias", "model__k": 2, "model__router_options": ("jitter", 0.1, "groups", 2)}


@pytest.mark.parametrize(
    ("options", "moments"),
    [
        (NOISY, [kills.in_checkpoint, kills.in_line, kills.any_time]),
        (SIGMOID, [kills.before_link, kills.in_deletion, kills.any_time]),
    ],
    ids=["noisy_topk", "sigmoid_bias"],
)
def test_a_run_killed_anywhere_and_resumed_gives_the_same_numbers(tmp_path, options, moments):
    # 60 verses are 40 windows: with two batches of four per step an epoch ends at every fifth.
    options = {**options, "steps": 30, "eval_interval": 7}
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    whole, run = tmp_path / "whole" / "runs" / "tiny", tmp_path / "killed" / "runs" / "tiny"
    assert main(command(tmp_path / "whole", **options)) == 0
    arguments = command(tmp_path / "killed", **options)
    for moment in moments:
        assert kills.run_until_killed(moment, arguments) in (-signal.SIGKILL, -signal.SIGALRM)
        arguments = ["resume", str(run)]
    assert (run / "metrics.jsonl").read_bytes().count(b"\n") < 30
    assert main(arguments) == 0

    assert rows(run) == rows(whole)
    assert [row["step"] for row in rows(run)] == list(range(1, 31))
    assert checkpoints(run) == checkpoints(whole)


def test_a_run_killed_before_its_first_checkpoint_has_to_start_anew(tmp_path, capsys):
    assert kills.run_until_killed(kills.before_first_checkpoint, command(tmp_path)) == -signal.SIGKILL
    assert main(["resume", str(tmp_path / "runs" / "tiny")]) == 2
    assert "got none, for the run ended before its first; start it anew with mixtura train" in capsys.readouterr().err


def test_ctrl_c_saves_a_checkpoint_and_says_how_to_resume(tmp_path):
    run = tmp_path / "runs" / "tiny"
    options = {"steps": 100_000, "checkpoint_interval": 100_000, "eval_interval": 100_000}
    process = subprocess.Popen(
        [sys.executable, "-m", "mixtura", *command(tmp_path, **options)], stderr=subprocess.PIPE, text=True
    )
    metrics = run / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.stat().st_size):  # a step: it listens by now
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    steps = len(rows(run))
    assert process.returncode == 130
    assert errors == f"mixtura: stopped after step {steps}, which is saved; then: mixtura resume {run}\n"
    assert checkpoints(run) == [f"step-{steps:06d}"]


def test_a_run_interrupted_between_checkpoints_goes_on_to_the_same_numbers(finished_run, tmp_path, monkeypatch, capsys):
    write = MetricsFile.write

    def interrupt(self, row):
        write(self, row)
        if row["step"] == 7:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(MetricsFile, "write", interrupt)
    assert main(command(tmp_path)) == 130
    monkeypatch.undo()
    run = tmp_path / "runs" / "tiny"
    assert checkpoints(run) == ["best", "step-000005", "step-000007"]
    assert main(["resume", str(tmp_path / "runs" / "latest")]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"report: {run}/report.html"
    assert rows(run) == rows(finished_run)


def test_a_second_ctrl_c_ends_at_once_and_leaves_what_was_there(tmp_path, monkeypatch, capsys):
    write = MetricsFile.write

    def interrupt(self, row):
        write(self, row)
        if row["step"] == 7:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(MetricsFile, "write", interrupt)
    assert main(command(tmp_path)) == 130
    assert capsys.readouterr().err == "mixtura: stopped\n"
    assert checkpoints(tmp_path / "runs" / "tiny") == ["best", "step-000004", "step-000005"]
    assert signal.getsignal(signal.SIGINT) is before


def test_training_works_where_signals_are_not_heard(tmp_path):
    codes = []
    thread = threading.Thread(target=lambda: codes.append(main(command(tmp_path, steps=2))))
    thread.start()
    thread.join()
    assert codes == [0]


def test_a_run_leaves_what_the_report_and_resume_need(finished_run):
    config = json.loads((finished_run / "config.json").read_text())
    assert config["recipe"] == "lm-tiny"
    assert config["config"]["model"]["context"] == 16
    assert config["parameters"]["active"] < config["parameters"]["total"]
    assert {"mixtura", "torch", "python"} == set(config["versions"])
    assert (finished_run.parent / "latest").readlink().name == "tiny"
    assert (finished_run / "report.html").stat().st_size > 1_000_000

    table = rows(finished_run)
    assert [row["step"] for row in table] == list(range(1, 13))
    assert [row["items"] for row in table] == [64 * step for step in range(1, 13)]
    assert [row["step"] for row in table if "val_loss" in row] == [5, 10, 12]
    assert set(table[4]["val_loss"]) == {"poem", "mean"}
    assert table[-1]["loss"] < table[0]["loss"] < 6
    for row in table:
        (load,) = row["load"].values()
        assert len(load) == 4
        assert sum(load) == pytest.approx(1, abs=1e-5)
        assert set(row["aux"]) == {"load_balance", "z"}
        assert 0 < row["entropy"]["blocks.0.feed_forward"] < 1.4
    times = [json.loads(line) for line in (finished_run / "metrics.jsonl").read_text().splitlines()]
    assert all(row["seconds"] > 0 and row["items_per_s"] > 0 for row in times)
    assert times[0]["seconds"] < times[-1]["seconds"]


def test_the_last_two_checkpoints_and_the_best_are_kept(tmp_path, monkeypatch):
    losses = iter([5.0, 3.0, 4.0, 2.0, 6.0, math.nan])
    monkeypatch.setattr("mixtura.train.loop.evaluate", lambda *_: Evaluation(losses={"a": next(losses)}))
    assert main(command(tmp_path, steps=24, eval_interval=4, checkpoint_interval=3)) == 0
    run = tmp_path / "runs" / "tiny"
    assert checkpoints(run) == ["best", "step-000016", "step-000021", "step-000024"]
    assert (run / "checkpoints" / "best").readlink().name == "step-000016"
    assert rows(run)[-1]["val_loss"] == {"a": None, "mean": None}


def test_evaluation_disturbs_no_random_numbers(tmp_path):
    tables = []
    for interval in (1, 1000):
        folder = tmp_path / str(interval)
        folder.mkdir()
        assert main(command(folder, **NOISY, eval_interval=interval)) == 0
        tables.append([row["loss"] for row in rows(folder / "runs" / "tiny")])
    assert tables[0] == tables[1]


def test_a_finished_run_is_resumed_by_writing_its_report(run, capsys):
    before = rows(run)
    (run / "report.html").unlink()
    assert main(["resume", str(run)]) == 0
    assert (run / "report.html").exists()
    assert rows(run) == before
    assert capsys.readouterr().out.splitlines() == [f"report: {run}/report.html"]


def test_going_back_drops_what_came_later_and_recreates_it(run, finished_run, capsys):
    assert main(["resume", str(run), "--checkpoint", "10"]) == 0
    assert "going back to step 10: dropped the later checkpoints of steps 12" in capsys.readouterr().out
    assert rows(run) == rows(finished_run)
    assert checkpoints(run) == checkpoints(finished_run)


def test_the_controllers_coefficients_go_on_where_they_were(tmp_path):
    options = {**CONTROLLED, "steps": 8, "checkpoint_interval": 4, "eval_interval": 100}
    assert main(command(tmp_path, **options)) == 0
    run = tmp_path / "runs" / "tiny"
    before = rows(run)
    coefficients = torch.load(run / "checkpoints/step-000004/state.pt", weights_only=True)["balance"]["coefficients"]
    assert coefficients["blocks.0.feed_forward"] > 1.2 * 0.03  # it started at the recipe's 3e-2, and grew
    assert main(["resume", str(run), "--checkpoint", "4"]) == 0
    assert rows(run) == before


def test_a_run_whose_text_has_changed_is_not_resumed(tmp_path, capsys):
    assert main(command(tmp_path)) == 0
    (tmp_path / "poem.txt").write_text("another poem\n\n" * 900 + "".join(map(chr, range(65, 500))) * 9)
    assert main(["resume", str(tmp_path / "runs" / "tiny")]) == 2
    assert "have changed; restore them, or start a new run" in capsys.readouterr().err


def test_train_is_a_function_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="expected a file, a folder or a glob"):
        train(LanguageConfig(data=DataConfig(path="none.txt")))
    assert not list(tmp_path.iterdir())


def test_counters_add_up():
    counters = Counters().after_step(items=5, seconds=0.5).after_step(items=5, seconds=0.25)
    assert counters.row() == {"step": 2, "items": 10, "seconds": 0.75}
