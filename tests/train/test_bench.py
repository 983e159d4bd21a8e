"""`mixtura bench` on sizes that take no time; what it says is asserted, never how long something took."""

import json

import pytest
import torch

from mixtura import UserError, kernels
from mixtura.cli import main
from mixtura.train.bench import DENSE, BenchArguments, bench, in_turn

TINY = {"dim": 8, "hidden": 6, "num_experts": 4, "tokens": 12, "seconds": 0.01, "device": "cpu"}
RUNNING = [
    name for name in ("native", "cpu", "grouped_mm", "reference") if name != "native" or kernels.native.variant()
]


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_every_kernel_that_can_run_is_measured_beside_a_dense_mlp(tmp_path, capsys):
    path = tmp_path / "figures.json"
    found = bench(BenchArguments(**TINY, threads=1, json=str(path)))
    assert [row["name"] for row in found["rows"]] == [*RUNNING, DENSE]
    assert json.loads(path.read_text()) == found
    assert found["machine"]["threads"] == 1
    assert found["arguments"]["tokens"] == 12
    for row in found["rows"]:
        for what in ("forward", "both"):
            low, high = row[f"{what} quartiles"]
            assert 0 < low <= row[f"{what} ms"] <= high
            assert row[f"{what} repeats"] >= 3
            assert row[f"{what} tokens/s"] == pytest.approx(12e3 / row[f"{what} ms"], rel=0.01)
        assert row["both to dense"] == pytest.approx(row["both ms"] / found["rows"][-1]["both ms"], abs=2e-3)
    shown = capsys.readouterr().out
    assert all(name in shown for name in [*RUNNING, DENSE, "(chosen)", "T 12, D 8, F 6, E 4, K 2", torch.__version__])


def test_what_cannot_run_here_is_named_with_the_reason(monkeypatch, capsys):
    monkeypatch.setenv(kernels.native.VARIABLE, "off")
    found = bench(BenchArguments(**TINY, k=1, dtype="bf16"))
    assert "native" not in [row["name"] for row in found["rows"]]
    assert "$MIXTURA_NATIVE is off" in found["missing"]["native"]
    assert "$MIXTURA_NATIVE is off" in capsys.readouterr().out


def test_only_what_is_fast_enough_runs_again():
    calls, times = [], iter([0.0, 9.0, *[0.0] * 9])
    found = in_turn({"quick": lambda: next(times), "slow": lambda: next(times)}, lambda: calls.append(1), 0.0)
    assert found == {"quick": [0.0, 0.0, 0.0], "slow": [9.0]}
    assert len(calls) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokens": 0}, "tokens: expected more than 0, got 0"),
        ({"seconds": float("nan")}, "seconds: expected more than 0, got nan"),
        ({"k": 5}, "1 <= k <= num_experts"),
        ({"hidden": 0}, "expected hidden of at least 1, got 0"),
        ({"activation": "tanh"}, "expected an activation among"),
        ({"device": "warp"}, "expected a device of this machine, got 'warp'"),
        ({"json": "/dev/null/figures.json"}, "expected a file that can be written, got '/dev/null/figures.json'"),
    ],
)
def test_wrong_values_are_refused(options, message):
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        bench(BenchArguments(**{**TINY, **options}))


def test_the_command(tmp_path, capsys):
    path = tmp_path / "figures.json"
    options = [f"--{name.replace('_', '-')}={value}" for name, value in {**TINY, "json": path}.items()]
    assert main(["bench", *options]) == 0
    assert json.loads(path.read_text())["arguments"]["hidden"] == 6
    assert main(["bench", "--dtype", "fp8"]) == 2
    assert "'fp8'" in capsys.readouterr().err
