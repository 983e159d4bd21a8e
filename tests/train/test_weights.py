"""Runs on several processes: started, saved, and resumed on another number of them."""

import os
import re
import socket
from contextlib import redirect_stderr
from io import StringIO

import pytest

from mixtura.cli import main
from tests.distributed.pool import Pool
from tests.train.tiny import command, rows

EVEN = {"model__losses__load_balance": 0.0, "model__losses__z": 0.0}


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def run(arguments, port, world):
    """The command line as torchrun starts it; its exit code and what it complains of."""
    started = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_RANK": "0"}
    os.environ.update(started)
    try:
        with redirect_stderr(StringIO()) as heard:
            return main(arguments), heard.getvalue()
    finally:
        for name in started:
            del os.environ[name]


@pytest.fixture(scope="module")
def two():
    pool = Pool(2, grouped=False)
    yield pool
    pool.close()


def close(found, expected):
    assert len(found) == len(expected)
    for row, wanted in zip(found, expected, strict=True):
        assert row["items"] == wanted["items"]
        assert row["loss"] == pytest.approx(wanted["loss"], rel=1e-4)
        assert row["grad_norm"] == pytest.approx(wanted["grad_norm"], rel=1e-3)
        if "val_loss" in wanted:
            assert row["val_loss"]["mean"] == pytest.approx(wanted["val_loss"]["mean"], rel=1e-4)
        for name, load in wanted["load"].items():
            assert row["load"][name] == pytest.approx(load, abs=2e-3)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    assert main(command(folder, **EVEN, data__batch_size=8)) == 0
    return folder


@pytest.mark.parametrize("axis", ["dp", "ep", "fsdp", "tp"])
def test_two_processes_train_as_one(two, alone, tmp_path, axis):
    batch = 8 if axis == "tp" else 4
    arguments = command(tmp_path, **EVEN, data__batch_size=batch, **{f"mesh__{axis}": 2})
    assert two.run(run, arguments, free_port(), 2) == [(0, "")] * 2
    close(rows(tmp_path / "runs" / "tiny"), rows(alone / "runs" / "tiny"))
    assert (tmp_path / "runs" / "tiny" / "report.html").is_file()


@pytest.mark.parametrize("before", ["one", "two"])
def test_a_run_goes_on_with_another_mesh(two, alone, tmp_path, before):
    """Twelve steps: the first ten on experts apart or on one process, the rest elsewhere."""
    mesh = {"mesh__ep": 2, "data__batch_size": 4} if before == "two" else {"data__batch_size": 8}
    arguments = command(tmp_path, **EVEN, **mesh)
    found = tmp_path / "runs" / "tiny"
    if before == "two":
        assert two.run(run, arguments, free_port(), 2) == [(0, "")] * 2
        resumed = ["resume", str(found), "--checkpoint", "10", "--dp", "2"]
        assert two.run(run, resumed, free_port(), 2) == [(0, "")] * 2
        close(rows(found), rows(alone / "runs" / "tiny"))
        return
    assert main(arguments) == 0
    config = found / "config.json"
    config.write_text(config.read_text().replace('"batch_size": 8', '"batch_size": 4'))
    assert two.run(run, ["resume", str(found), "--checkpoint", "10", "--ep", "2"], free_port(), 2) == [(0, "")] * 2
    close(rows(found), rows(alone / "runs" / "tiny"))
    assert main(["eval", str(found), "--checkpoint", "last"]) == 0


def test_a_rank_is_named_when_it_fails(two, tmp_path):
    arguments = command(tmp_path, mesh__dp=4)
    for rank, (code, text) in enumerate(two.run(run, arguments, free_port(), 2)):
        assert code == 2
        assert re.fullmatch(rf"mixtura: rank {rank}: expected 4 processes for this mesh, got 2; start with: .*\n", text)
