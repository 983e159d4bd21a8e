"""Two synthetic tasks of a chosen correlation (Ma et al. 2018, section 3.2): shared bottom, one gate, a gate per task.

    python -m benchmarks.multitask_synthetic --runs 60

All runs of one model train at once: their parameters are stacked and every step is one batched product. Each run has
tasks, data and initial weights of its own; every batch is new, so that nothing is learned by heart. The paper gives
neither the sines nor any loss as a number (figures only): what can be compared is the order.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from statistics import mean, median, stdev
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, stack_module_state, vmap

from benchmarks.common import RESULTS, save
from benchmarks.parts import part
from mixtura.multitask import MMoE, MultiTask, OMoE, SharedBottom, Task

DIM, BATCH = 100, 128
TASKS = [Task(name="first", kind="regression"), Task(name="second", kind="regression")]
CORRELATIONS = (0.5, 0.9, 1.0)
FREQUENCIES, PHASES = torch.arange(1.0, 5.0), torch.arange(4.0) * 0.7
MODELS: dict[str, Callable[[], MultiTask]] = {
    "shared bottom": lambda: SharedBottom(None, tasks=TASKS, dim=DIM, bottom=(113,), tower=(8,)),
    "OMoE": lambda: OMoE(None, tasks=TASKS, dim=DIM, num_experts=8, expert=(16,), tower=(8,)),
    "MMoE": lambda: MMoE(None, tasks=TASKS, dim=DIM, num_experts=8, expert=(16,), tower=(8,)),
}


def directions(runs: int, p: float, generator: torch.Generator) -> Tensor:
    """Each run's two directions, orthonormal ones mixed to the cosine p: (R, 2, D)."""
    u = torch.linalg.qr(torch.randn(runs, DIM, 2, generator=generator)).Q.transpose(1, 2)
    return torch.stack([u[:, 0], p * u[:, 0] + (1 - p * p) ** 0.5 * u[:, 1]], 1)


def draw(w: Tensor, rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Inputs (R, B, D) and both labels (R, B, 2): w.x + sum_i sin(a_i w.x + b_i) + N(0, 0.01)."""
    x = torch.randn(w.shape[0], rows, DIM, generator=generator)
    s = x @ w.transpose(1, 2)
    y = s + torch.sin(s.unsqueeze(-1) * FREQUENCIES + PHASES).sum(-1)
    return x, y + 0.1 * torch.randn(y.shape, generator=generator)


def train(name: str, *, p: float, runs: int, steps: int, lr: float, seed: int = 0) -> dict[str, Any]:
    """Train all runs of one model; the mean loss of both tasks on held-out rows, over time and at the end."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed + 1)
    models = [MODELS[name]() for _ in range(runs)]
    parameters, buffers = stack_module_state(models)  # type: ignore[arg-type]
    w = directions(runs, p, generator)
    held_out = draw(w, 2048, generator)

    def loss(values: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        scores = functional_call(models[0], (values, buffers_of_one), (x,)).scores
        return (torch.stack([scores["first"], scores["second"]], -1) - y).square().mean()

    buffers_of_one = {key: value[0] for key, value in buffers.items()}
    losses = vmap(loss)
    optimizer = torch.optim.Adam(parameters.values(), lr=lr)
    curve, start = [], time.process_time()
    for step in range(1, steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, 4 * (1 - (step - 1) / steps))  # falls to 0 over the last quarter
        total = losses(parameters, *draw(w, BATCH, generator)).sum()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        if step % max(1, steps // 20) == 0:
            with torch.no_grad():
                now = losses(parameters, *held_out)
            curve.append([step, *(round(float(v), 4) for v in (now.mean(), now.quantile(0.1), now.quantile(0.9)))])
    final = [round(v, 4) for v in now.tolist()]
    count = sum(q.numel() for q in models[0].parameters())
    seconds = round(time.process_time() - start, 1)
    return {"final": final, "curve": curve, "parameters": count, "processor seconds": seconds}


def summary(run: dict[str, Any]) -> dict[str, Any]:
    """Mean, deviation and median over the runs."""
    final = run["final"]
    figures = {"mean": mean(final), "standard deviation": stdev(final), "median": median(final)}
    return {**{name: round(value, 4) for name, value in figures.items()}, **run}


def plot(result: dict[str, Any]) -> None:
    """Mean loss over steps with the middle 80 % of the runs, and the final losses of all runs."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    colours = {"shared bottom": "#858b95", "OMoE": "#e08a00", "MMoE": "#1668b8"}
    ps = list(result["p"])
    figure, axes = plt.subplots(2, len(ps), figsize=(11, 6.4), layout="constrained", sharey="row")
    for column, p in enumerate(ps):
        for place, (name, run) in enumerate(result["p"][p].items()):
            steps, middle, low, high = zip(*run["curve"], strict=True)
            axes[0, column].plot(steps, middle, color=colours[name], label=name, lw=1.8)
            axes[0, column].fill_between(steps, low, high, color=colours[name], alpha=0.15, lw=0)
            spread = [place + 0.16 * ((7 * n) % 11 / 5 - 1) for n in range(len(run["final"]))]
            axes[1, column].plot(spread, run["final"], ".", color=colours[name], ms=4, alpha=0.7)
            axes[1, column].plot([place - 0.3, place + 0.3], [run["mean"]] * 2, color="black", lw=1.2)
        axes[0, column].set_title(f"cosine of the tasks {p}")
        axes[0, column].set_xlabel("steps")
        axes[1, column].set_xticks(range(len(result["p"][p])), list(result["p"][p]))
        for axis in axes[:, column]:
            axis.set_yscale("log")
            axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set_ylabel("held-out squared error")
    axes[1, 0].set_ylabel("at the end; each run, and the mean")
    axes[0, -1].legend(frameon=False)
    figure.savefig(RESULTS / "multitask_synthetic.png", dpi=110)


def main() -> None:
    """Train, print, and write benchmarks/results/multitask_synthetic.json and .png."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--p", nargs="*", type=float, help="only these parts, and no result")
    parser.add_argument("--models", nargs="*", default=list(MODELS), help="only these")
    options = parser.parse_args()
    settings = {"runs": options.runs, "steps": options.steps, "lr": options.lr}
    found: dict[str, Any] = {}
    for p in options.p or CORRELATIONS:
        for name in options.models:
            key = f"synthetic/{p} {name} {options.runs} {options.steps} {options.lr}"
            run = summary(part(key, partial(train, name, p=p, **settings)))
            found.setdefault(str(p), {})[name] = run
            print(f"p={p} {name:14} {run['mean']:.4f} +- {run['standard deviation']:.4f}", flush=True)
    if not options.p:
        result = {**settings, "batch": BATCH, "p": found}
        plot(result)
        print(save("multitask_synthetic", result))


if __name__ == "__main__":
    main()
