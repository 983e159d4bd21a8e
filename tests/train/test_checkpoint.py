import errno
import os
import signal

import pytest
import torch
from torch import nn

from mixtura.cli import main
from mixtura.errors import UserError
from mixtura.train import checkpoint, files
from mixtura.train.checkpoint import (
    find_checkpoint,
    go_back,
    list_checkpoints,
    load_state,
    load_weights,
    save_checkpoint,
)
from mixtura.train.device import random_state
from mixtura.train.run import Run
from tests.train import kills
from tests.train.tiny import checkpoints, command, rows

STATE = {"counters": {}, "optimizer": {}, "stream": {}, "random": {}, "data": "x"}


@pytest.fixture
def fresh(tmp_path):
    return Run(tmp_path / "a run")


def fill(run, *steps, best):
    for step in steps:
        save_checkpoint(run, nn.Linear(2, 1), STATE | {"counters": {"step": step}}, step=step, best_step=best)


def test_weights_and_state_come_back(fresh):
    model = nn.Linear(2, 1)
    folder = save_checkpoint(fresh, model, STATE | {"random": random_state()}, step=3, best_step=3)
    expected = torch.get_rng_state()
    other = nn.Linear(2, 1)
    load_weights(other, folder)
    assert torch.equal(other.weight, model.weight)
    assert torch.equal(load_state(folder)["random"]["cpu"], expected)


def test_the_last_two_and_the_best_are_kept(fresh):
    fill(fresh, 5, 10, 15, best=5)
    assert checkpoints(fresh.folder) == ["best", "step-000005", "step-000010", "step-000015"]
    fill(fresh, 20, best=20)
    assert checkpoints(fresh.folder) == ["best", "step-000015", "step-000020"]
    assert find_checkpoint(fresh, "best") == find_checkpoint(fresh) == find_checkpoint(fresh, "20")


def test_steps_are_ordered_as_numbers(fresh):
    fill(fresh, 999_999, 1_000_000, best=0)
    (fresh.checkpoints / "step-of-mine").mkdir()
    assert find_checkpoint(fresh).name == "step-1000000"
    assert [path.name for path in list_checkpoints(fresh)] == ["step-999999", "step-1000000"]


def test_the_link_to_the_best_is_repaired_before_its_old_target_goes(fresh):
    fill(fresh, 5, 10, best=5)
    (fresh.checkpoints / "best").unlink()  # as if killed before the link was made
    fill(fresh, 15, 20, best=5)
    assert find_checkpoint(fresh, "best").name == "step-000005"


def test_going_back_deletes_later_checkpoints_and_leftovers(fresh):
    fill(fresh, 5, 10, 15, best=15)
    (fresh.checkpoints / ".new-abc").mkdir()
    (fresh.checkpoints / ".new-link").symlink_to("step-000005")
    (fresh.checkpoints / ".old-abc" / "inner").mkdir(parents=True)
    assert go_back(fresh, step=10) == [15]
    assert checkpoints(fresh.folder) == ["step-000010"]
    assert go_back(fresh, step=10) == []


def test_weights_of_another_model_are_refused(fresh):
    fill(fresh, 5, best=5)
    with pytest.raises(UserError, match=r"expected a whole checkpoint in .*; there is no other; train anew"):
        load_weights(nn.Linear(3, 1), find_checkpoint(fresh))


def full_from(monkeypatch, number, part, *, name="_sync"):
    """From the `number`-th write below `part` on, the disk is full."""
    real, calls = getattr(files, name), []

    def full(path):
        if part in str(path):
            calls.append(path)
            if len(calls) >= number:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(path)

    monkeypatch.setattr(files, name, full)


@pytest.mark.parametrize("way", ["sync", "torch", "safetensors"])
def test_a_full_disk_leaves_the_older_checkpoints(tmp_path, finished_run, monkeypatch, capsys, way):
    import safetensors
    import safetensors.torch

    run = tmp_path / "runs" / "tiny"
    if way == "sync":
        full_from(monkeypatch, 6, "checkpoints")  # two files, their folder and its parent for each checkpoint
    else:
        library, name = (torch, "save") if way == "torch" else (safetensors.torch, "save_model")
        real, calls = getattr(library, name), []

        def full(*arguments):
            calls.append(arguments)
            if len(calls) == 2:
                raise (
                    RuntimeError("PytorchStreamWriter failed writing\nfile")
                    if way == "torch"
                    else safetensors.SafetensorError("No space left on device")
                )
            real(*arguments)

        monkeypatch.setattr(library, name, full)
    assert main(command(tmp_path)) == 2
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1
    assert str(run / "checkpoints") in errors
    assert "free some" in errors
    assert errors.endswith(f", then: mixtura resume {run}\n")
    assert checkpoints(run) == ["step-000004"]
    monkeypatch.undo()
    assert main(["resume", str(run)]) == 0
    assert rows(run) == rows(finished_run)


def test_old_checkpoints_are_whole_or_gone(fresh, monkeypatch):
    """A deletion that is killed leaves nothing that looks like a checkpoint."""
    fill(fresh, 5, 10, best=0)
    monkeypatch.setattr(checkpoint.shutil, "rmtree", lambda *_, **__: None)
    fill(fresh, 15, best=0)
    assert [path.name for path in list_checkpoints(fresh)] == ["step-000010", "step-000015"]
    monkeypatch.undo()
    go_back(fresh, step=15)
    assert checkpoints(fresh.folder) == ["step-000010", "step-000015"]


def test_half_a_checkpoint_is_never_taken_for_one(tmp_path):
    assert kills.run_until_killed(kills.in_checkpoint, command(tmp_path)) == -signal.SIGKILL
    run = Run(tmp_path / "runs" / "tiny")
    assert [path.name for path in list_checkpoints(run)] == ["step-000004"]
    assert len(checkpoints(run.folder)) == 2  # and the half one, which resuming deletes
    assert main(["resume", str(run.folder)]) == 0
    assert not [name for name in checkpoints(run.folder) if name.startswith(".")]
