import pytest

from mixtura.cli import main
from mixtura.errors import UserError
from mixtura.train.board import Board
from tests.train.tiny import command, rows


@pytest.fixture
def read_events():
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="optional")

    def read(folder):
        events = accumulator.EventAccumulator(str(folder / "tensorboard"))
        events.Reload()
        return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}

    return read


def test_events_hold_the_metrics_and_a_resumed_run_has_each_step_once(tmp_path, read_events):
    assert main(command(tmp_path, tensorboard=True)) == 0
    run = tmp_path / "runs" / "tiny"
    assert main(["resume", str(run), "--checkpoint", "10"]) == 0
    events = read_events(run)
    table = rows(run)
    assert events["loss"] == [(row["step"], pytest.approx(row["loss"], rel=1e-6)) for row in table]
    assert [step for step, _ in events["aux/load_balance"]] == list(range(1, 13))
    assert [step for step, _ in events["val_loss/mean"]] == [5, 10, 12]
    assert {"grad_norm", "lr", "entropy/blocks.0.feed_forward", "dropped/blocks.0.feed_forward"} < set(events)
    assert "step" not in events


def test_what_is_not_a_number_is_left_out(tmp_path, read_events):
    with Board(tmp_path, enabled=True, after_step=0, advice="") as board:
        board.write({"step": 1, "loss": None, "aux": {"z": 0.5, "b": None}})
    assert read_events(tmp_path) == {"aux/z": [(1, 0.5)]}


def test_nothing_is_written_unasked(tmp_path):
    with Board(tmp_path, enabled=False, after_step=0, advice="") as board:
        board.write({"step": 1, "loss": 1.0})
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "tensorboard").write_text("in the way")
    with pytest.raises(UserError, match=r"cannot write TensorBoard's events in .*, then wait"):
        Board(tmp_path, enabled=True, after_step=0, advice="then wait")
