"""Every test starts from one seed, hypothesis is deterministic, and memory can be poisoned."""

import os
import shutil
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch

from mixtura.cli import main
from tests.poison import poison_memory
from tests.train.tiny import command

# Triton's kernels run in its interpreter, here and in what tests start. Triton reads this once, when it is imported.
os.environ["TRITON_INTERPRET"] = "1"

# Several workers share the cores; one thread each is faster than all of them fighting for all cores.
if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)


class TorchRandom:
    """Torch's generator as hypothesis wants it, so that an example draws the same numbers when it is replayed."""

    def seed(self, value: int) -> None:
        """Set the seed."""
        torch.manual_seed(value)

    def getstate(self) -> Any:
        """Give the state of torch's CPU generator."""
        return torch.get_rng_state()

    def setstate(self, state: Any) -> None:
        """Set the state of torch's CPU generator."""
        torch.set_rng_state(state)


TORCH_RANDOM = TorchRandom()
hypothesis.register_random(TORCH_RANDOM)
hypothesis.settings.register_profile("ci", derandomize=True, deadline=None)
hypothesis.settings.load_profile("ci")


@pytest.fixture(autouse=True)
def seed() -> None:
    """Seed torch before every test, so that a test gives the same result alone and in any order."""
    torch.manual_seed(0)


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill what torch.empty and its kin return with NaN (integers: the largest value) for the length of a test."""
    poison_memory(monkeypatch)


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the folder of a finished tiny training run, made once, that no test may change."""
    folder = tmp_path_factory.mktemp("finished")
    assert main(command(folder)) == 0
    return folder / "runs" / "tiny"


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    """Give a copy of the finished run that a test may damage."""
    return shutil.copytree(finished_run, tmp_path / "copied", symlinks=True)
