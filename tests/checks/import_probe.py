"""Import a package in a fresh interpreter and write down, as JSON, whatever the import did besides importing.

Run as `python import_probe.py PACKAGE RESULT REFUSED...`; REFUSED names packages that must not be needed.
"""

import builtins
import importlib
import importlib.abc
import json
import logging
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

PROBES = {
    "torch.cuda": (
        "init",
        "is_available",
        "device_count",
        "current_device",
        "get_device_properties",
        "get_device_name",
    ),
    "torch.xpu": ("is_available", "device_count"),
    "torch.backends.mps": ("is_available",),
    "torch.accelerator": ("is_available", "device_count", "current_accelerator"),
    "torch.distributed": ("init_process_group", "init_device_mesh"),
}
EVENTS = ("socket.connect", "socket.getaddrinfo", "subprocess.Popen", "os.system", "os.mkdir", "os.remove")


class Watch:
    """What was found so far; it also refuses optional packages, as a meta path finder."""

    def __init__(self, package: str, refused: frozenset[str]) -> None:
        self.package, self.refused = package, refused
        self.found: list[str] = []
        self.on = False

    def where(self) -> str | None:
        """Give `file:line` of the innermost frame of the package, or None outside it."""
        frame: Any = sys._getframe(1)
        while frame is not None:
            if frame.f_globals.get("__name__", "").partition(".")[0] == self.package:
                root = Path(sys.modules[self.package].__path__[0]).parent
                return f"{Path(frame.f_code.co_filename).relative_to(root).as_posix()}:{frame.f_lineno}"
            frame = frame.f_back
        return None

    def note(self, text: str) -> None:
        """Write `text` down with the line of the package that caused it; what others do is not noted."""
        if self.on and (where := self.where()):
            self.found.append(f"{where}: {text}")

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        """Refuse the optional packages to everyone, as if they were not installed."""
        if self.on and (root := name.partition(".")[0]) in self.refused:
            frame: Any = sys._getframe(1)
            while frame is not None and "importlib" in frame.f_globals.get("__name__", ""):
                frame = frame.f_back
            # Torch may try for packages that it can do without; that is not the package's doing.
            if frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] == self.package:
                self.note(f"imports the optional {root}; import it inside the function that needs it")
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    def importer(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Refuse the package every import but torch and the standard library, also of what torch has loaded already."""
        allowed = sys.stdlib_module_names | {"torch", self.package}

        def guarded(name: str, *args: Any, **options: Any) -> Any:
            space = dict(zip(("globals", "locals", "fromlist", "level"), args, strict=False)) | options
            root = name.partition(".")[0]
            caller = (space.get("globals") or {}).get("__name__", "").partition(".")[0]
            if self.on and not space.get("level") and caller == self.package and root not in allowed:
                self.note(f"imports the optional {root}; import it inside the function that needs it")
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)
            return original(name, *args, **options)

        return guarded

    def audit(self, event: str, args: tuple[Any, ...]) -> None:
        """Note network, processes, and files that are opened for writing."""
        if event in EVENTS or (event == "open" and set(str(args[1] or "r")) & set("wax+")):
            self.note(f"raises the audit event {event}; do it on the first call")

    def probe(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        """Note a call of a function that asks for devices or starts communication."""

        def noted(*args: Any, **kwargs: Any) -> Any:
            self.note(f"calls {name}; ask on the first call")
            return original(*args, **kwargs)

        return noted


def state() -> dict[str, Any]:
    """Everything global that an import must leave as it was."""
    import torch

    return {
        "threads of torch": torch.get_num_threads(),
        "dtype of torch": str(torch.get_default_dtype()),
        "seed of torch": torch.get_rng_state().tolist(),
        "gradient mode of torch": torch.is_grad_enabled(),
        "deterministic mode of torch": torch.are_deterministic_algorithms_enabled(),
        "float32 precision of torch": torch.get_float32_matmul_precision(),
        "environment": dict(os.environ),
        "warning filters": [str(entry) for entry in warnings.filters],
        "log handlers": [str(handler) for handler in logging.getLogger().handlers],
    }


def run(package: str, refused: frozenset[str]) -> list[str]:
    """Import torch, then the package under watch, and list what was found."""
    importlib.import_module("torch")
    watch = Watch(package, refused - set(sys.modules))  # what torch has loaded stays whole, for torch's own sake
    for module, names in PROBES.items():
        for name in names:
            holder = importlib.import_module(module)
            setattr(holder, name, watch.probe(f"{module}.{name}", getattr(holder, name)))
    sys.meta_path.insert(0, watch)
    builtins.__import__ = watch.importer(builtins.__import__)
    sys.addaudithook(watch.audit)
    sys.argv = [package, "--no-such-option"]
    warnings.simplefilter("error")
    before = state()
    watch.on = True
    try:
        module = importlib.import_module(package)
        for name in getattr(module, "__all__", ()):  # names that are loaded on first use are loaded now
            getattr(module, name)
    except ModuleNotFoundError as error:
        watch.found.append(f"{package}/__init__.py:1: cannot be imported without {error.name}; import that late")
    finally:
        watch.on = False
    after = state()
    changed = [
        f"{package}/__init__.py:1: changes the {key}; leave it to the user"
        for key in before
        if before[key] != after[key]
    ]
    return watch.found + changed


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(run(sys.argv[1], frozenset(sys.argv[3:]))), encoding="utf-8")
