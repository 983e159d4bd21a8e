import errno
import json
import os
from pathlib import Path

import pytest
import torch

from mixtura.cli import main
from mixtura.errors import UserError
from mixtura.observe.record import LayerRecord, RoutingLog
from mixtura.routing import Routing
from mixtura.train.metrics import MetricsFile, StepResult, measure
from tests.train.tiny import checkpoints, command, rows


def routing(experts, *, logits_TE):
    probs_TE = logits_TE.softmax(-1)
    chosen_TK = torch.tensor(experts).unsqueeze(-1)
    return Routing.from_choices(chosen_TK, probs_TE.gather(-1, chosen_TK), logits_TE=logits_TE, probs_TE=probs_TE)


def result(**changes):
    values = {
        "total": torch.tensor(6.0),
        "weight": torch.tensor(4.0),
        "items": 3,
        "lr": 0.5,
        "grad_norm": torch.tensor(2.0),
        "aux": {"z": torch.tensor(0.25)},
        "parts": {},
        "log": RoutingLog(),
    }
    return StepResult(**(values | changes))


def test_a_row_holds_shares_of_all_micro_batches():
    even, certain = torch.zeros(2, 2), torch.tensor([[40.0, 0.0], [40.0, 0.0]])
    log = RoutingLog(
        a=[
            LayerRecord(routing([0, 1], logits_TE=even), torch.tensor([1, 1])),
            LayerRecord(routing([0, 0], logits_TE=certain), torch.tensor([1, 0])),
        ]
    )
    row = measure(result(log=log))
    assert row["loss"] == 1.5
    assert (row["lr"], row["grad_norm"], row["aux"]) == (0.5, 2.0, {"z": 0.25})
    assert row["load"] == {"a": [0.75, 0.25]}
    assert row["dropped"] == {"a": 0.25}
    assert row["entropy"]["a"] == pytest.approx(0.6931 / 2, abs=1e-4)


def test_parts_are_told_where_a_task_has_some():
    assert "parts" not in measure(result())
    assert measure(result(parts={"income": torch.tensor(0.5)}))["parts"] == {"income": 0.5}


def test_what_is_not_a_number_is_null():
    row = measure(result(total=torch.tensor(torch.nan), grad_norm=torch.tensor(torch.inf), weight=torch.tensor(0.0)))
    assert row["loss"] is None
    assert row["grad_norm"] is None
    assert json.loads(json.dumps(row, allow_nan=False)) == row


def test_rows_after_a_checkpoint_and_half_rows_are_cut_off(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2}\n{"step": 3}\n{"step": 4, "lo')
    for after, kept in ((3, 3), (2, 2), (0, 0)):
        MetricsFile(path, after_step=after, advice="").close()
        assert path.read_text().count("\n") == kept


def test_a_crash_may_leave_zeros(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + b"\0" * 4096)
    MetricsFile(path, after_step=1, advice="").close()
    assert path.read_text() == '{"step": 1}\n'


@pytest.mark.parametrize("line", [b"{", b"3", b"[]", b'{"loss": 1}', b"\xff", b'{"step": null}', b""])
def test_a_damaged_row_among_those_to_keep_is_told_and_left(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + line + b'\n{"step": 3}\n')
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"expected a step's metrics in line 2 of .*metrics\.jsonl"):
        MetricsFile(path, after_step=3, advice="")
    assert path.read_bytes() == before


class AlmostFull:
    """A file on a disk with room for `left` more bytes."""

    def __init__(self, file, left):
        self.file, self.left = file, left

    def write(self, data):
        if not self.left:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        taken = self.file.write(data[: self.left])
        self.left -= taken
        return taken

    def fileno(self):
        return self.file.fileno()

    def close(self):
        self.file.close()


def test_a_full_disk_stops_training_and_leaves_a_run_to_resume(tmp_path, finished_run, monkeypatch, capsys):
    real = Path.open

    def almost_full(path, *arguments, **options):
        file = real(path, *arguments, **options)
        return AlmostFull(file, 3000) if path.name == "metrics.jsonl" and "ab" in arguments else file

    monkeypatch.setattr(Path, "open", almost_full)
    run = tmp_path / "runs" / "tiny"
    assert main(command(tmp_path)) == 2
    assert capsys.readouterr().err == (
        f"mixtura: no space left in {run} for metrics.jsonl; free some, then: mixtura resume {run}\n"
    )
    assert (run / "metrics.jsonl").stat().st_size == 3000
    assert "step-000004" in checkpoints(run)
    monkeypatch.undo()
    assert main(["resume", str(run)]) == 0
    assert rows(run) == rows(finished_run)


def test_a_row_is_on_its_way_at_once(tmp_path):
    with MetricsFile(tmp_path / "metrics.jsonl", after_step=0, advice="") as file:
        file.write({"step": 1, "loss": 0.1})
        assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "loss": 0.1}\n'
        file.sync()
        with pytest.raises(ValueError, match="not JSON compliant"):
            file.write({"step": 2, "loss": float("nan")})
