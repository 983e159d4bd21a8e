"""Census-Income with two tasks (Ma et al. 2018, section 5.2): income above 50,000, and a college degree.

    python -m benchmarks.multitask_census --seeds 3

Education and marital status are no inputs. Half of the published test rows choose the epoch, the other half is what
is reported. The published figures are of income beside marital status (never married) as the auxiliary task.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.common import RESULTS, save
from benchmarks.parts import has, part
from mixtura.multitask import PLE, MMoE, MultiTask, OMoE, SharedBottom, TableEncoder, Task, auc, task_losses
from mixtura.train.data.census import CODES, LEFT_OUT, census
from mixtura.train.data.schema import Schema, Table, encode, learn
from mixtura.train.data.table import Columns, held_out, read_sheet

INCOME, COLLEGE = Task(name="income"), Task(name="college")
BOTH = [INCOME, COLLEGE]
PUBLISHED = {  # income AUC: best run, mean
    "single task": (0.9398, 0.9337),
    "shared bottom": (0.9361, 0.9295),
    "OMoE": (0.9387, 0.9319),
    "MMoE": (0.9410, 0.9359),
}
SHAPE: dict[str, Any] = {"tower": (16,), "dropout": 0.1}
# About 155,000 parameters each, those of a single task's network included.
MODELS: dict[str, Callable[[TableEncoder], MultiTask]] = {
    "single task": lambda encoder: SharedBottom(encoder, tasks=[INCOME], bottom=(512, 32), **SHAPE),
    "shared bottom": lambda encoder: SharedBottom(encoder, tasks=BOTH, bottom=(512, 32), **SHAPE),
    "OMoE": lambda encoder: OMoE(encoder, tasks=BOTH, num_experts=8, expert=(64, 32), **SHAPE),
    "MMoE": lambda encoder: MMoE(encoder, tasks=BOTH, num_experts=8, expert=(64, 32), **SHAPE),
    "PLE": lambda encoder: PLE(encoder, tasks=BOTH, shared_experts=3, task_experts=2, expert=(64,), **SHAPE),
}
Rows = tuple[Tensor, Tensor, dict[str, Tensor]]


def data() -> tuple[Schema, dict[str, Rows], list[str]]:
    """Training, validation and test rows, encoded by what the training rows have taught."""
    train, test = (read_sheet(path) for path in census())
    columns = Columns(labels=("income:binary", "college:binary"), categorical=CODES, ignore=LEFT_OUT)
    schema = learn(train, columns, np.ones(train.rows, dtype=bool))
    is_test = held_out(test, fraction=0.5)
    tables = {
        "train": encode(train, schema),
        "validation": encode(test, schema, ~is_test),
        "test": encode(test, schema, is_test),
    }
    return schema, {name: _tensors(table) for name, table in tables.items()}, list(tables["train"].notes)


def _tensors(table: Table) -> Rows:
    labels = {name: torch.from_numpy(values) for name, values in table.labels.items()}
    return torch.from_numpy(table.categories_NC), torch.from_numpy(table.numbers_NM), labels


def train(
    name: str, schema: Schema, rows: dict[str, Rows], *, seed: int, epochs: int = 3, batch: int = 1024, lr: float = 4e-3
) -> dict[str, Any]:
    """One run: AUC of each task on validation and test rows after every epoch, and how its gates weigh the experts."""
    torch.manual_seed(seed)
    encoder = TableEncoder([c.size for c in schema.categories], numbers=schema.numbers_width, dropout=0.05)
    model = MODELS[name](encoder)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=1e-2)
    categories, numbers, labels = rows["train"]
    steps = len(categories) // batch
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=epochs * steps, pct_start=0.1)
    start, history = time.process_time(), []
    for _ in range(epochs):
        model.train()
        for chosen in torch.randperm(len(categories))[: steps * batch].view(steps, batch):
            said = model(categories[chosen], numbers[chosen])
            losses = task_losses(said, {task: label[chosen] for task, label in labels.items()})
            optimizer.zero_grad()
            torch.stack(list(losses.values())).sum().backward()
            optimizer.step()
            schedule.step()
        history.append({part: evaluate(model, rows[part]) for part in ("validation", "test")})
    best = max(history, key=lambda at: at["validation"]["income"])
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "processor seconds": round(time.process_time() - start, 1),
        "validation": best["validation"],
        "test": best["test"],
        "gates": gates(model, rows["test"]),
    }


@torch.no_grad()
def evaluate(model: MultiTask, rows: Rows) -> dict[str, float]:
    """AUC of each task."""
    model.eval()
    said = model(rows[0], rows[1])
    return {task.name: round(auc(said.scores[task.name], rows[2][task.name]), 5) for task in model.tasks}


@torch.no_grad()
def gates(model: MultiTask, rows: Rows) -> dict[str, Any]:
    """Mean weight of each expert in each task's gate of the last level."""
    model.eval()
    told = model(rows[0], rows[1]).gates[-1]
    weights = {task: [round(w, 4) for w in gate.mean(0).tolist()] for task, gate in told.items()}
    return {task: dict(zip(model.experts_of(task), w, strict=True)) for task, w in weights.items()}


def plot(result: dict[str, Any]) -> None:
    """AUC of every run beside the published means, and the gates of one run."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, *right) = plt.subplots(1, 3, figsize=(12, 3.9), layout="constrained", width_ratios=(1.5, 1, 1))
    for place, (name, row) in enumerate(result["models"].items()):
        left.plot([place] * len(row["income"]), row["income"], "o", color="#1668b8", ms=5, alpha=0.7)
        if name in PUBLISHED:
            left.plot([place - 0.3, place + 0.3], [PUBLISHED[name][1]] * 2, color="#d5531e", lw=2)
    left.set_xticks(range(len(result["models"])), list(result["models"]))
    left.set_ylabel("income AUC: ours (dots), published mean (lines)")
    left.spines[["top", "right"]].set_visible(False)
    for axis, name in zip(right, ("MMoE", "PLE"), strict=True):
        shown = result["models"][name]["gates"]
        experts = list(dict.fromkeys(expert for gate in shown.values() for expert in gate))
        values = [[gate.get(expert, float("nan")) for expert in experts] for gate in shown.values()]
        axis.imshow(values, cmap="Blues", vmin=0, aspect="auto")
        axis.set_xticks(range(len(experts)), experts, rotation=90, fontsize=8)
        axis.set_yticks(range(len(shown)), list(shown))
        axis.set_title(f"{name}: mean weight of each expert", fontsize=10)
        for row_, line in enumerate(values):
            for column, value in enumerate(line):
                if value == value:
                    axis.text(column, row_, f"{value:.2f}", ha="center", va="center", fontsize=7)
    figure.savefig(RESULTS / "multitask_census.png", dpi=110)


def main() -> None:
    """Train, print, and write benchmarks/results/multitask_census.json and .png."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only-seed", type=int, help="only this part, and no result")
    parser.add_argument("--models", nargs="*", default=list(MODELS), help="with --only-seed: only these")
    parser.add_argument("--kept", action="store_true", help="report the runs that are there, and train no other")
    options = parser.parse_args()
    schema, rows, notes = data()
    print("\n".join(notes), flush=True)
    models: dict[str, Any] = {}
    for seed in range(options.seeds) if options.only_seed is None else [options.only_seed]:
        for name in MODELS if options.only_seed is None else options.models:
            if options.kept and not has(f"census/{name} {seed}"):
                continue
            run = part(f"census/{name} {seed}", partial(train, name, schema, rows, seed=seed))
            row = models.setdefault(name, {"income": [], "college": [], "gates": run["gates"]})
            row |= {key: run[key] for key in ("parameters", "processor seconds")}
            row["income"].append(run["test"]["income"])
            row["college"].append(run["test"].get("college"))
            print(seed, name, run["test"], run["parameters"], run["processor seconds"], flush=True)
    if options.only_seed is not None:
        return
    for row in models.values():
        row["mean"], row["best"] = round(mean(row["income"]), 4), round(max(row["income"]), 4)
        row["standard deviation"] = round(stdev(row["income"]), 4) if len(row["income"]) > 1 else None
    labels = rows["train"][2]
    correlation = float(torch.corrcoef(torch.stack([labels["income"], labels["college"]]))[0, 1])
    result = {"seeds": options.seeds, "correlation": round(correlation, 4), "published": PUBLISHED, "models": models}
    plot(result)
    print(save("multitask_census", {**result, "notes": notes}))


if __name__ == "__main__":
    main()
