"""A run's folder: configuration, metrics, checkpoints; nothing in it is ever overwritten half."""

import json
import os
import platform
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mixtura.errors import UserError
from mixtura.models.count import ParameterCount
from mixtura.train.config import TrainConfig, from_dict, to_dict
from mixtura.train.files import write_file


@dataclass(frozen=True)
class Run:
    """One run's folder on the disk.

    Example:
        >>> Run(Path("runs/a")).metrics.name
        'metrics.jsonl'
    """

    folder: Path

    @property
    def metrics(self) -> Path:
        """One JSON object per optimizer step."""
        return self.folder / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """A folder per kept checkpoint, and `best`, a link to one of them."""
        return self.folder / "checkpoints"

    @property
    def tokenizer(self) -> Path:
        """The tokenizer, so that text can be generated without the corpus."""
        return self.folder / "tokenizer.json"

    def read_config(self) -> TrainConfig:
        """The configuration the run was started with.

        Raises:
            UserError: no run in this folder, or a config.json that cannot be read.
        """
        path = self.folder / "config.json"
        try:
            return from_dict(TrainConfig, json.loads(path.read_text(encoding="utf-8"))["config"])
        except FileNotFoundError as error:
            raise UserError(
                f"expected a run's folder with a config.json, got {str(self.folder)!r}; `ls runs` shows the runs"
            ) from error
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise UserError(f"expected a run's configuration in {path}, got something unreadable ({error})") from error


def create_run(config: TrainConfig, parameters: ParameterCount, device: torch.device) -> Run:
    """Make a new run's folder with its config.json, and point `latest` at it.

    Raises:
        UserError: the folder exists, or cannot be written.
    """
    name = config.name or f"{config.recipe}-{time.strftime('%Y%m%d-%H%M%S')}"
    folder = Path(config.out) / name
    try:
        folder.mkdir(parents=True)
    except FileExistsError as error:
        raise UserError(
            f"expected a new run, but {str(folder)!r} exists; take another --name, or `mixtura resume {folder}`"
        ) from error
    except OSError as error:
        raise UserError(
            f"cannot make the run's folder {str(folder)!r}: {error.strerror}; choose another --out"
        ) from error
    write_file(folder / "config.json", json.dumps(_facts(config, parameters, device), indent=2) + "\n")
    point_link(folder.parent / "latest", folder.name)
    return Run(folder)


def open_run(path: str | Path) -> Run:
    """The run in a folder that exists.

    Raises:
        UserError: there is no such folder.

    Example:
        >>> open_run("runs/of-nobody")
        Traceback (most recent call last):
        ...
        mixtura.errors.UserError: expected a run's folder, got 'runs/of-nobody', which does not exist
    """
    folder = Path(path)
    if not folder.is_dir():
        raise UserError(f"expected a run's folder, got {str(path)!r}, which does not exist")
    # `latest` is resolved, so that a run started meanwhile does not change what is being written to.
    return Run(folder.parent / folder.readlink() if folder.is_symlink() else folder)


def _facts(config: TrainConfig, parameters: ParameterCount, device: torch.device) -> Mapping[str, Any]:
    from mixtura import __version__

    return {
        "recipe": config.recipe,
        "started": time.strftime("%Y-%m-%d %H:%M:%S"),
        "config": to_dict(config),
        "versions": {"mixtura": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "machine": {
            "cpu": cpu_name(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        },
        "parameters": {"total": parameters.total, "active": parameters.active},
    }


def cpu_name() -> str:
    """The processor's name as the system gives it."""
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def point_link(link: Path, target: str) -> None:
    """Make or move a symbolic link in one step; where links are not allowed there is simply no `latest`."""
    temporary = link.with_name(f".{link.name}-{os.getpid()}")
    try:
        temporary.symlink_to(target, target_is_directory=True)
    except OSError as error:
        if sys.platform == "win32":  # needs a privilege there
            return
        raise UserError(f"cannot make the link {str(link)!r}: {error.strerror}") from error
    temporary.replace(link)
