"""Every router on one task, a line each: compare two routing papers by changing one word.

    python examples/routers.py [STEPS]

Points come from eight clusters, and each cluster has its own linear map: the best mixture gives each cluster an expert.
The loss is the mean squared error (the maps' outputs have variance 1); the imbalance is the busiest expert's load over
the mean load; experts per point is what each point costs.
"""

import sys
import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import mixtura as mx
from mixtura.observe.metrics import imbalance
from mixtura.routers import update_biases

DIM, CLUSTERS, POINTS = 16, 8, 512
BALANCE = {"load_balance": 1e-2}


@dataclass(frozen=True)
class Line:
    """One router of the comparison."""

    router: str
    k: int | None = None
    losses: dict[str, float] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    capacity_factor: float | None = None


LINES = {
    "dense": Line("dense"),
    "top-2": Line("topk", k=2, losses=BALANCE),
    "top-2, softmax first": Line("topk", k=2, losses=BALANCE, options={"order": "softmax_topk"}),
    "noisy top-2": Line("noisy_topk", k=2, losses={"importance": 1e-2, "load": 1e-2}),
    "switch": Line("switch", losses=BALANCE),
    "hard": Line("hard", losses=BALANCE),
    "gshard, capacity 2": Line("gshard", losses={"gshard": 1e-2}, capacity_factor=2.0),
    "top-p": Line("top_p", losses={**BALANCE, "entropy": 1e-2}, options={"p": 0.6, "max_k": 3}),
    "sigmoid + bias, top-2": Line("sigmoid_bias", k=2),
    "expert choice": Line("expert_choice", k=2),
    "sinkhorn": Line("sinkhorn", k=1),
    "base": Line("base"),
    "soft": Line("soft", options={"slots_per_expert": 64}),
    "hierarchical 4 x 2": Line("hierarchical", losses=BALANCE, options={"branching": (4, 2), "k": (2, 1)}),
    "hash (of the cluster)": Line("hash", options={"vocab_size": CLUSTERS}),
    "random": Line("random", k=2),
}


class Clusters:
    """The task: cluster centres and their maps, drawn once."""

    def __init__(self) -> None:
        self.centres = 2 * torch.randn(CLUSTERS, DIM)
        self.maps = torch.randn(CLUSTERS, DIM, DIM) / (DIM * (1 + 4)) ** 0.5

    def draw(self) -> tuple[Tensor, Tensor, Tensor]:
        """Points, their targets, their clusters."""
        cluster = torch.randint(CLUSTERS, (POINTS,))
        x = self.centres[cluster] + torch.randn(POINTS, DIM)
        return x, torch.einsum("nd,nde->ne", x, self.maps[cluster]), cluster


def run(line: Line, *, steps: int, seed: int = 0) -> dict[str, float]:
    """Train one layer; its held-out loss, imbalance, experts per point and milliseconds a step."""
    torch.manual_seed(seed)
    task = Clusters()
    layer = mx.MoEConfig(
        dim=DIM,
        hidden=2 * DIM,
        num_experts=CLUSTERS,
        k=line.k,
        router=line.router,
        router_options=line.options,
        activation="gelu",
        losses=line.losses,
        capacity_factor=line.capacity_factor,
    ).build()
    optimizer = torch.optim.AdamW(layer.parameters(), lr=3e-3)
    seconds = []
    for _ in range(steps):
        x, y, cluster = task.draw()
        start = time.perf_counter()
        optimizer.zero_grad()
        nn.functional.mse_loss(layer(x, context=cluster), y).backward()
        optimizer.step()
        update_biases(layer)
        seconds.append(time.perf_counter() - start)
    layer.eval()
    with torch.no_grad(), mx.record(layer) as log:
        losses = []
        for _ in range(8):
            x, y, cluster = task.draw()
            losses.append(nn.functional.mse_loss(layer(x, context=cluster), y))
    counts_E = torch.stack([record.counts_E() for record in log[""]]).sum(0)
    kept = torch.stack([record.kept_E for record in log[""]]).sum()
    return {
        "loss": torch.stack(losses).mean().item(),
        "imbalance": imbalance(counts_E).item(),
        "experts per point": kept.item() / (8 * POINTS),
        "ms per step": 1e3 * sorted(seconds)[len(seconds) // 2],
    }


def main() -> None:
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 300
    print(f"{'router':24}{'loss':>8}{'imbalance':>11}{'experts':>9}{'ms':>7}")
    for name, line in LINES.items():
        r = run(line, steps=steps)
        print(
            f"{name:24}{r['loss']:8.3f}{r['imbalance']:11.2f}{r['experts per point']:9.2f}{r['ms per step']:7.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
