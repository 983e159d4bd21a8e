"""Every example runs; what it prints is a table whose numbers make sense."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SMALL = {"three_experts.py": ["1"], "routers.py": ["20"]}


def output(example: str) -> list[str]:
    command = [sys.executable, str(ROOT / "examples" / example), *SMALL[example]]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    assert not done.stderr
    return done.stdout.splitlines()


def test_every_example_is_run():
    assert {path.name for path in (ROOT / "examples").glob("[!_]*.py")} == set(SMALL)


def test_three_experts():
    rows = {line[:24].strip(): float(line[24:]) for line in output("three_experts.py")}
    assert set(rows) > {"expert (0, 1)", "mixture, gate trained", "mixture, all trained"}
    # Each expert knows two of three classes; the gate's mixture knows more than the worst of them.
    assert min(rows.values()) > 0.3
    assert rows["mixture, gate trained"] > min(rows[f"expert {pair}"] for pair in ("(0, 1)", "(1, 2)", "(0, 2)"))


@pytest.mark.parametrize("column", ["loss", "imbalance", "experts", "ms"])
def test_routers(column, table):
    assert all(float(row[column]) > 0 for row in table.values())


@pytest.fixture(scope="module")
def table():
    header, *lines = output("routers.py")
    names = header[24:].split()
    return {line[:24].strip(): dict(zip(names, line[24:].split(), strict=True)) for line in lines}
