"""What does a newcomer's first command give? A fresh clone in a folder with a space in its name, `make train`, timed.

    python -m benchmarks.first_run

The installation is timed apart from the run. Peak memory is that of the largest process.
"""

import json
import resource
import subprocess
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.common import save

ROOT = Path(__file__).parent.parent


def timed(command: list[str], folder: Path) -> float:
    """Run a command in a folder and show what it prints; returns minutes."""
    start = time.perf_counter()
    subprocess.run(command, cwd=folder, check=True)
    return (time.perf_counter() - start) / 60


def summary(run: Path) -> dict[str, Any]:
    """The figures of a finished run from its files."""
    config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return {
        "steps": rows[-1]["step"],
        "tokens": rows[-1]["items"],
        "tokens/s": round(median(row["items_per_s"] for row in rows)),
        "parameters": config["parameters"],
        "validation loss": [row["val_loss"] for row in rows if "val_loss" in row][-1],
    }


def main() -> None:
    """Clone, install, train, and write benchmarks/results/train.json."""
    with tempfile.TemporaryDirectory(prefix="a clone ") as parent:
        clone = Path(parent, "mix tura")
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        install = timed(["make", ".venv/train"], clone)
        minutes = timed(["make", "train"], clone)
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        result = summary(clone / "runs" / "latest")
        (ROOT / "runs").mkdir(exist_ok=True)
        (clone / "runs" / "latest").resolve().rename(ROOT / "runs" / f"first-run-{time.strftime('%Y%m%d-%H%M%S')}")
    facts = {"minutes to install": round(install, 2), "minutes": round(minutes, 2), "peak memory MB": peak // 1024}
    print(save("train", {**facts, **result}))


if __name__ == "__main__":
    main()
