"""What every benchmark shares: the machine's description, result files, interleaved timing."""

import json
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mixtura.train.bench import machine

RESULTS = Path(__file__).parent / "results"


def save(name: str, result: Mapping[str, Any]) -> Path:
    """Write a result with the machine it was measured on; returns its path."""
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"machine": machine(), **result}, indent=1) + "\n", encoding="utf-8")
    return path


def load(name: str) -> dict[str, Any]:
    """Read a committed result."""
    result: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return result


def table(header: list[str], rows: list[list[str]]) -> str:
    """Give a table in Markdown: words in the first column, figures in the others."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def measured_on(result: Mapping[str, Any]) -> str:
    """Say on which machine and when a result was measured."""
    m = result["machine"]
    return f"{m['cpu']}, {m['threads']} threads, torch {m['torch']}, {m['date']}"


def interleave(tasks: Mapping[str, Callable[[], object]], *, repeats: int, warmup: int) -> dict[str, list[float]]:
    """Time the tasks in turn, so that a busy moment of the machine meets all of them: seconds of each repeat."""
    for _ in range(warmup):
        for task in tasks.values():
            task()
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(repeats):
        for name, task in tasks.items():
            start = time.perf_counter()
            task()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def spread(seconds: list[float]) -> dict[str, float]:
    """Median and quartiles in milliseconds."""
    low, middle, high = (1e3 * value for value in statistics.quantiles(seconds, n=4))
    return {"median": round(middle, 2), "quartile 1": round(low, 2), "quartile 3": round(high, 2)}
