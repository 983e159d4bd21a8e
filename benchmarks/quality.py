"""Does the mixture reach a lower loss than the dense model of equal active parameters in the same wall time?

    python -m benchmarks.quality --seconds 240

Three runs of the default recipe on the same data: dense for the whole time, the mixture for the whole time, and the
mixture for half of it, each with a learning-rate schedule that ends with its time. How many steps fit is measured
first, both models' steps in turn. Seconds are training time; evaluation is left out for all alike.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, save
from benchmarks.train_step import compare
from mixtura.train.loop import train
from mixtura.train.recipes import get_recipe
from mixtura.train.tasks.language import LanguageConfig

RUNS = {
    "dense": ("lm-tiny-dense", 1.0),
    "mixture": ("lm-tiny", 1.0),
    "mixture, half the time": ("lm-tiny", 0.5),
}


def run(config: LanguageConfig, *, steps: int, folder: Path) -> dict[str, Any]:
    """Train for `steps` and give the curve of the validation loss."""
    config = replace(config, steps=steps, eval_interval=max(1, steps // 24), checkpoint_interval=steps, out=str(folder))
    path = train(config) / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    evaluated = [row for row in rows if "val_loss" in row]
    return {
        "steps": steps,
        "tokens": rows[-1]["items"],
        "seconds": rows[-1]["seconds"],
        "final": evaluated[-1]["val_loss"],
        "curve": [[row["step"], round(row["seconds"], 2), round(row["val_loss"]["mean"], 5)] for row in evaluated],
    }


def crossing(runs: dict[str, Any]) -> dict[str, float | None]:
    """Seconds after which each mixture's loss is below the dense model's last one, and as a share of its time."""
    target, whole = runs["dense"]["final"]["mean"], runs["dense"]["seconds"]
    result: dict[str, float | None] = {}
    for name in ("mixture", "mixture, half the time"):
        seconds = next((seconds for _, seconds, loss in runs[name]["curve"] if loss <= target), None)
        result[name] = None if seconds is None else round(seconds / whole, 3)
    return result


def plot(result: dict[str, Any], path: Path) -> None:
    """Both curves over steps and over seconds, with the crossing marked."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), sharey=True, layout="constrained")
    colours = {"dense": "#888888", "mixture": "#1668b8", "mixture, half the time": "#7fb2e5"}
    for axis, place, label in zip(axes, (0, 1), ("steps", "seconds of training"), strict=True):
        for name, run_ in result["runs"].items():
            points = [point for point in run_["curve"] if point[2] < result["ceiling"]]
            axis.plot([p[place] for p in points], [p[2] for p in points], color=colours[name], label=name, lw=1.8)
        axis.axhline(result["runs"]["dense"]["final"]["mean"], color=colours["dense"], lw=0.8, ls=":")
        axis.set_xlabel(label)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("validation loss, nats per byte")
    axes[1].legend(frameon=False)
    figure.savefig(path, dpi=130)


def main() -> None:
    """Measure, train, and write benchmarks/results/quality.json and quality.png."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=240.0, help="training time of the whole runs")
    parser.add_argument("--out", type=Path, default=Path("runs/quality"), help="folder of the runs")
    options = parser.parse_args()
    cost = compare(repeats=60, warmup=150)
    runs = {}
    for name, (recipe, share) in RUNS.items():
        milliseconds = cost["ms per step"][recipe]["median"]
        steps = int(options.seconds * share * 1e3 / milliseconds)
        runs[name] = run(get_recipe(recipe), steps=steps, folder=options.out)
    dense = runs["dense"]["final"]["mean"]
    result = {
        "seconds": options.seconds,
        "step cost": cost,
        "runs": runs,
        "reaches the dense model's final loss after this share of its time": crossing(runs),
        "ceiling": round(dense * 1.6, 3),
    }
    for name, run_ in runs.items():
        print(f"{name:>24}  {run_['steps']} steps  {run_['seconds']:.0f} s  {run_['final']['mean']:.4f} nats/byte")
    plot(result, RESULTS / "quality.png")
    print(save("quality", result))


if __name__ == "__main__":
    main()
