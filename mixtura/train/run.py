"""A run's folder: configuration, metrics, checkpoints; nothing in it is ever overwritten half."""

import dataclasses
import json
import os
import platform
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch

from mixtura.errors import UserError
from mixtura.models.count import ParameterCount
from mixtura.train.config import TrainConfig, from_dict, to_dict
from mixtura.train.files import write_file, writing
from mixtura.train.tasks import find_config


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

    @property
    def advice(self) -> str:
        """How to go on after an interruption, to end a message with."""
        return f"then: mixtura resume {shlex.quote(str(self.folder))}"

    def read_config(self) -> TrainConfig:
        """The configuration the run was started with.

        Raises:
            UserError: no run in this folder, or a config.json that cannot be read.
        """
        path = self.folder / "config.json"
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))
            return from_dict(find_config(facts["task"]), facts["config"])
        except FileNotFoundError as error:
            raise UserError(
                f"expected a run's folder with a config.json, got {str(self.folder)!r}, which has none; see `ls runs`"
            ) from error
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror or error}; make it readable") from error
        except (ValueError, KeyError, TypeError) as error:  # not UTF-8, not JSON, no "config", or not of a run
            raise UserError(
                f"expected a run's configuration in {path}, got something else ({error}); "
                "restore the file, or train anew"
            ) from error


def create_run(
    config: TrainConfig, *, parameters: ParameterCount, save: Callable[[Path], None], device: torch.device
) -> Run:
    """Make a new run's folder with its configuration, and point `latest` at it; or leave nothing behind.

    Args:
        config: of the run.
        parameters: of its model.
        save: writes what the model needs besides its weights into a folder; see `Task.save`.
        device: where it is trained.

    Raises:
        UserError: the folder exists, or cannot be written.
    """
    folder = new_run_folder(config)
    with writing(folder.parent, what="the run's folder", advice="or choose another --out"):
        try:
            folder.mkdir(parents=True)
        except FileExistsError as error:
            raise UserError(_exists(folder)) from error
        try:
            save(folder)
            write_file(folder / "config.json", json.dumps(_facts(config, parameters, device), indent=2) + "\n")
            point_link(folder.parent / "latest", folder.name)
        except BaseException:
            shutil.rmtree(folder)
            raise
    return Run(folder)


def new_run_folder(config: TrainConfig) -> Path:
    """The folder that a new run will have; nothing is made yet.

    Raises:
        UserError: it exists.

    Example:
        >>> from mixtura.train.tasks.language import LanguageConfig
        >>> new_run_folder(LanguageConfig(out="runs", name="of-nobody")).as_posix()
        'runs/of-nobody'
    """
    folder = Path(config.out) / (config.name or f"{config.recipe or config.task}-{time.strftime('%Y%m%d-%H%M%S')}")
    if folder.exists():
        raise UserError(_exists(folder))
    return folder


def _exists(folder: Path) -> str:
    return (
        f"expected a new run, but {str(folder)!r} exists; "
        f"take another --name, or: mixtura resume {shlex.quote(str(folder))}"
    )


def open_run(path: str | Path) -> Run:
    """The run in a folder that exists.

    Raises:
        UserError: there is no such folder.

    Example:
        >>> open_run("runs/of-nobody")
        Traceback (most recent call last):
        ...
        mixtura.errors.UserError: expected a run's folder, got 'runs/of-nobody', which does not exist; see `ls runs`
    """
    folder = Path(path)
    if not folder.is_dir():
        fault = "is a file" if folder.exists() else "does not exist"
        raise UserError(f"expected a run's folder, got {str(path)!r}, which {fault}; see `ls runs`")
    # `latest` is resolved, so that a run started meanwhile does not change what is being written to.
    return Run(folder.parent / folder.readlink() if folder.is_symlink() else folder)


def _facts(config: TrainConfig, parameters: ParameterCount, device: torch.device) -> Mapping[str, Any]:
    from mixtura import __version__

    return {
        "recipe": config.recipe,
        "task": config.task,
        "units": dataclasses.asdict(config.units),
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
    if sys.platform == "linux":  # where platform.processor() says nothing
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def point_link(link: Path, target: str) -> None:
    """Make or move a symbolic link in one step; where links are not allowed there is simply no `latest`."""
    temporary = link.with_name(f".new-{uuid4().hex}")
    with writing(link.parent, what=f"the link {link.name!r}"):
        try:
            temporary.symlink_to(target, target_is_directory=True)
        except OSError:
            if os.name == "nt":  # needs a privilege there
                return
            raise
        try:
            temporary.replace(link)
        except OSError:
            temporary.unlink()
            raise
