"""Long benchmarks in parts: each is computed once and kept, so that a stopped one goes on where it was."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

FOLDER = Path(".cache/benchmarks")


def part(name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `make` gave when it was first asked for this name; delete the file to measure again."""
    path = FOLDER / f"{name}.json"
    if not has(name):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(make()), encoding="utf-8")
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return result


def has(name: str) -> bool:
    """Whether a part has been computed."""
    return (FOLDER / f"{name}.json").exists()
