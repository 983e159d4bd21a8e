"""Hatchling's hook: compile the native kernel into the wheel where a C++ compiler is found. Never needed to install."""

import importlib.util
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class NativeKernelHook(BuildHookInterface[Any]):
    """Adds `mixtura/kernels/_native.so`; an editable install gets it in the checkout."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002  # hatchling's signature
        """Compile before the files are collected; a failure is told and leaves a pure Python wheel."""
        if self.target_name != "wheel":
            return
        # Loaded by its path: importing mixtura would need torch, which a build environment does not have.
        path = Path(self.root) / "mixtura/kernels/build.py"
        spec = importlib.util.spec_from_file_location("mixtura_kernels_build", path)
        assert spec is not None
        assert spec.loader is not None
        build = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(build)
        if reason := build.main():
            self.app.display_warning(reason)
            return
        build_data["artifacts"].append("mixtura/kernels/_native.so")
        # Any Python of this platform can load it: it is reached through ctypes.
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{platform}"
