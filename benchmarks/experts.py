"""How does the loss of a language model fall with the number of experts, at equal active parameters and equal steps?

    python -m benchmarks.experts

lm-tiny with 2 to 64 experts, one chosen (Switch Transformers, Fedus et al. 2021, figure 1), its dense twin, and the
recipes that differ in their routing: fine-grained experts, and a capacity that drops. All train on the same batches.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, load, measured_on, save, table
from mixtura.train.loop import train
from mixtura.train.recipes import get_recipe
from mixtura.train.tasks.language import LanguageConfig

EXPERTS = (2, 4, 8, 16, 32, 64)
OTHERS = ("lm-tiny-dense", "lm-finegrained", "lm-switch")


def configurations() -> dict[str, LanguageConfig]:
    """What is trained, by name."""
    tiny = get_recipe("lm-tiny")
    assert isinstance(tiny, LanguageConfig)
    sweep = {f"{e} experts": replace(tiny, model=replace(tiny.model, num_experts=e)) for e in EXPERTS}
    return {name: get_recipe(name) for name in OTHERS} | sweep


def run(config: LanguageConfig, *, steps: int, out: Path, name: str) -> dict[str, Any]:
    """Train and give parameters and the curve of the validation loss."""
    config = replace(config, steps=steps, eval_interval=max(1, steps // 12), checkpoint_interval=steps)
    folder = train(replace(config, out=str(out), name=name.replace(" ", "-")))
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    evaluated = [row for row in rows if "val_loss" in row]
    parameters = json.loads((folder / "config.json").read_text(encoding="utf-8"))["parameters"]
    return {
        "parameters": parameters,
        "curve": [[row["step"], round(row["val_loss"]["mean"], 5)] for row in evaluated],
        "dropped": evaluated[-1]["dropped"],
    }


def plot(result: dict[str, Any], path: Path) -> None:
    """Loss over steps, and the last loss over the number of experts."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), sharey=True, layout="constrained")
    colours = plt.get_cmap("viridis")
    runs = result["runs"]
    sweep = [("lm-tiny-dense", 1), *((f"{e} experts", e) for e in EXPERTS)]
    for place, (name, experts) in enumerate(sweep):
        steps, losses = zip(*runs[name]["curve"][1:], strict=True)
        colour = "#888888" if experts == 1 else colours(1 - place / len(sweep))
        left.plot(steps, losses, color=colour, lw=1.6, label="dense" if experts == 1 else name)
    left.set(xlabel="steps", ylabel="validation loss, nats per byte")
    left.legend(frameon=False, fontsize=8)
    last = [runs[name]["curve"][-1][1] for name, _ in sweep]
    right.plot([experts for _, experts in sweep], last, color="#1668b8", marker="o", lw=1.6)
    right.set_xscale("log", base=2)
    right.set(xlabel="experts (1: dense), equal active parameters")
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def figures() -> str:
    """The last losses, from the committed result."""
    result = load("experts")
    rows = []
    for name, run_ in result["runs"].items():
        total, active = run_["parameters"]["total"], run_["parameters"]["active"]
        dropped = max(run_["dropped"].values(), default=0.0)
        rows.append([name, f"{total:,}", f"{active:,}", f"{run_['curve'][-1][1]:.3f}", f"{dropped:.1%}"])
    header = ["model", "parameters", "active", "nats per byte", "dropped"]
    return f"{table(header, rows)}\n{result['steps']:,} steps each; {measured_on(result)}\n"


def main() -> None:
    """Train all, and write benchmarks/results/experts.json and experts.png."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1350)
    parser.add_argument("--out", type=Path, default=Path("runs/experts"), help="folder of the runs")
    options = parser.parse_args()
    runs = {}
    for name, config in configurations().items():
        runs[name] = run(config, steps=options.steps, out=options.out, name=name)
        print(name, runs[name]["parameters"], runs[name]["curve"][-1])
    result = {"steps": options.steps, "runs": runs}
    plot(result, RESULTS / "experts.png")
    print(save("experts", result))


if __name__ == "__main__":
    main()
