"""The five steps of CONTRIBUTING.md, followed to the letter in a copy of the package and its tests."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.checks.pages import split

ROOT = Path(__file__).parents[2]


def blocks() -> list[str]:
    """The page's blocks: the router's file, three lines of `__init__.py`, the row of the table."""
    section = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("## Add a router in five steps\n")[2]
    return [block.text for block in split(section.partition("\n## ")[0])[1]]


def insert(path: Path, *, above: str, line: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count(above) == 1, (path, above)
    path.write_text(text.replace(above, f"{line}\n{above}"), encoding="utf-8")


def contracts(copy: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the contract table of the copy."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "tests/contracts/test_table.py", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for folder in ("mixtura", "tests"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


@pytest.mark.slow
def test_one_file_and_one_row_add_a_router(copy):
    router, lines, row = blocks()
    module = re.search(r"from mixtura\.routers\.(\w+) import", lines)[1]
    (copy / f"mixtura/routers/{module}.py").write_text(router, encoding="utf-8")
    imported, listed, named = lines.rstrip().splitlines()
    package = copy / "mixtura/routers/__init__.py"
    insert(package, above="__all__ = [", line=imported)
    package.write_text(package.read_text(encoding="utf-8").replace("__all__ = [", f"__all__ = [\n{listed}"))
    insert(package, above='    "topk": TopK,', line=named)

    missing = contracts(copy)
    assert missing.returncode == 1, missing.stdout + missing.stderr
    assert "mixtura.routers.square.Square" in missing.stdout  # so it is the copy that is tested

    insert(copy / "tests/contracts/cases.py", above='    "topk": RouterCase(TopK, weight_sum=ones),', line=row.rstrip())
    tests = ("tests/contracts/test_layers.py", "tests/routers/test_init.py")
    chosen = "square and not modules and not bias or test_table or test_init"
    result = contracts(copy, *tests, f"mixtura/routers/{module}.py", "-k", f"{chosen} or {module}.py")
    assert result.returncode == 0, result.stdout + result.stderr
    assert int(re.search(r"(\d+) passed", result.stdout)[1]) > 40
