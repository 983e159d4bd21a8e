"""Importing is free: no optional package, no device probe, no network, no argument parsing, no output."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

PROBE = Path(__file__).with_name("import_probe.py")


def import_effects(root: Path, package: str = "mixtura", *, refused: Iterable[str] = ()) -> list[str]:
    """Import `package` of `root` in a fresh interpreter where `refused` packages are missing; list its side effects."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder, "result.json")
        # -B writes no bytecode, -P keeps the probe's own folder off the path.
        command = [sys.executable, "-B", "-P", str(PROBE), package, str(result), *sorted(refused)]
        environment = {**os.environ, "PYTHONPATH": str(root)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=folder)
        output = (done.stdout + done.stderr).strip()
        here = f"{package}/__init__.py:1:"
        if done.returncode or not result.exists():
            return [f"{here} `import {package}` ends with code {done.returncode}; make it import cleanly\n{output}"]
        found: list[str] = json.loads(result.read_text(encoding="utf-8"))
    if output:
        found.append(f"{here} `import {package}` prints {output!r}; delete the output")
    return found
