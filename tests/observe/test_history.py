import json
import math

import pytest

from mixtura.errors import UserError
from mixtura.observe.history import clean, read_history, read_json, visible
from tests.observe.fabricate import metrics


def write(path, rows, end=""):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + end)
    return path


def test_short_run_is_kept_as_it_is(tmp_path):
    rows = list(metrics(steps=4, layers=1, experts=3, domains=("python",)))
    history = read_history(write(tmp_path / "metrics.jsonl", rows))
    assert history.step == (1, 2, 3, 4)
    assert history.loss == tuple(row["loss"] for row in rows)
    assert history.validation["python"] == tuple(row["val_loss"]["python"] for row in rows)
    layer = history.layers["blocks.1.ff"]
    assert layer.share.tolist() == [pytest.approx(row["load"]["blocks.1.ff"]) for row in rows]
    assert layer.imbalance.tolist() == pytest.approx([3 * max(row["load"]["blocks.1.ff"]) for row in rows])
    assert history.notes == ()


def test_long_run_is_averaged_over_neighbouring_steps(tmp_path):
    rows = ({"step": i + 1, "load": {"ff": [1.0, 0.0] if i % 2 else [0.0, 1.0]}} for i in range(6000))
    layer = read_history(write(tmp_path / "metrics.jsonl", rows)).layers["ff"]
    assert len(layer.step) == 1500
    assert layer.share[7].tolist() == [0.5, 0.5]
    # the imbalance of the steps, not that of their mean
    assert layer.imbalance[7] == 2.0


def test_many_layers_share_the_points(tmp_path):
    rows = ({"step": i + 1, "load": {f"layer{j}": [1.0] for j in range(24)}} for i in range(600))
    history = read_history(write(tmp_path / "metrics.jsonl", rows))
    assert {len(layer.step) for layer in history.layers.values()} == {500}


def test_cut_short_last_line_is_left_out_and_said(tmp_path):
    history = read_history(write(tmp_path / "metrics.jsonl", [{"step": 1, "loss": 2.0}], end='{"step": 2, "loss": 1.'))
    assert history.step == (1,)
    assert "cut short" in history.notes[0]


def test_crash_and_resume_keeps_the_later_steps(tmp_path):
    first = [{"step": i, "loss": 1.0} for i in (1, 2, 3, 4)]
    path = write(tmp_path / "metrics.jsonl", first, end='{"step": 5, "lo\n')
    with path.open("a") as file:
        file.write("".join(json.dumps({"step": i, "loss": 2.0}) + "\n" for i in (3, 4, 5)))
    history = read_history(path)
    assert history.step == (1, 2, 3, 4, 5)
    assert history.loss == (1.0, 1.0, 2.0, 2.0, 2.0)
    assert history.notes == (
        "1 unreadable lines inside metrics.jsonl were left out.",
        "2 steps were run again after a resume; the later values are shown.",
    )


def test_non_finite_and_missing_values_are_gaps(tmp_path):
    rows = [
        {"step": 1, "loss": math.nan, "load": {"ff": [0.5, 0.5]}, "entropy": {"ff": math.inf}},
        {"step": 2, "loss": None, "load": {"ff": [math.nan, 1.0]}},
        {"step": 3, "loss": 1.0, "load": {"ff": [0.0, 0.0]}, "val_loss": {"a": 1.0}},
        {"step": 4, "loss": 1.0, "val_loss": {"b": 2.0}},
    ]
    history = read_history(write(tmp_path / "metrics.jsonl", rows))
    layer = history.layers["ff"]
    assert [math.isnan(loss) for loss in history.loss] == [True, True, False, False]
    assert layer.share.isnan().all(1).tolist() == [False, True, True, True]
    assert layer.entropy.isnan().all()
    assert history.validation["a"][0] == 1.0
    assert math.isnan(history.validation["a"][1])
    assert math.isnan(history.validation["b"][0])


@pytest.mark.parametrize("text", ["", "\n", '{"step": 1', "[1]\n", '{"loss": 1}\n'])
def test_no_complete_step_is_an_error(tmp_path, text):
    path = tmp_path / "metrics.jsonl"
    path.write_text(text)
    with pytest.raises(UserError, match="at least one complete step"):
        read_history(path)


def test_layer_that_changes_its_experts_is_an_error(tmp_path):
    rows = [{"step": 1, "load": {"ff": [1.0]}}, {"step": 2, "load": {"ff": [0.5, 0.5]}}]
    with pytest.raises(UserError, match="expected 1 load shares for layer 'ff' at step 2, got 2"):
        read_history(write(tmp_path / "metrics.jsonl", rows))


def test_names_and_texts_are_made_visible():
    raw = json.loads('{"a\\u202eb": ["\\ud800", "x\\u0000", NaN, "tab\\tline\\n", "\\u00e9\\u4e2d", 3, null, true]}')
    assert clean(raw) == {"a\\u202eb": ["\\ud800", "x\\u0000", None, "tab\tline\n", "\u00e9\u4e2d", 3, None, True]}
    assert visible("plain") == "plain"


@pytest.mark.parametrize(("text", "message"), [("[1]", "object"), ("{", "JSON"), ("\udcff", "JSON")])
def test_broken_json_is_named(tmp_path, text, message):
    path = tmp_path / "config.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=message):
        read_json(path)
