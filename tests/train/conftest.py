"""One finished tiny run, made once; and text, cache and runs' folder of a test's own."""

import shutil

import pytest

from mixtura.cli import main
from tests.train.tiny import command


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory):
    """A finished run that no test may change."""
    folder = tmp_path_factory.mktemp("finished")
    assert main(command(folder)) == 0
    return folder / "runs" / "tiny"


@pytest.fixture
def run(finished_run, tmp_path):
    """A copy of the finished run that a test may damage."""
    return shutil.copytree(finished_run, tmp_path / "copied", symlinks=True)
