"""The mixture layer on a CPU, forward and backward: beside the products alone, a dense MLP, and other people's layers.

    python -m benchmarks.layer_cpu

Every repeat draws new inputs, so that the experts' row counts change as in training, and times all in turn. "floor" is
the same products as large single ones at oneDNN's rate, three times (forward and two in backward). "layer" starts from
given experts and weights, since the peers do: it sorts, gathers, computes, combines. What takes longer than
the seconds for its row is timed once. transformers' batched_mm is left out where it would copy more than 2 GiB of
matrices.
"""

import argparse
import json
import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import mixtura as mx
from benchmarks.common import load, save
from benchmarks.peers import Layer, ModuleLoop, transformers_layers, versions
from mixtura import kernels
from mixtura.dispatch import dispatch
from mixtura.routing import Routing
from mixtura.train.bench import in_turn, timed
from mixtura.train.device import keep_freed_memory


class Shape(NamedTuple):
    """One row of the table; load "skewed": one expert gets half of all rows, "starved": a quarter of them get none."""

    tokens: int
    dim: int
    hidden: int
    num_experts: int
    k: int
    load: str = "even"


SHAPES = [
    Shape(16, 512, 2048, 8, 2),
    Shape(128, 512, 2048, 8, 2),
    Shape(512, 512, 2048, 8, 2),
    Shape(1024, 512, 2048, 8, 2),
    Shape(8192, 512, 2048, 8, 2),
    Shape(4096, 512, 2048, 8, 2, "skewed"),
    Shape(4096, 512, 1024, 16, 2, "starved"),
    Shape(8192, 512, 1024, 16, 2),
    Shape(4096, 512, 256, 64, 8),
    Shape(2048, 1024, 512, 128, 8),
    Shape(4096, 512, 128, 256, 8),
    Shape(4096, 512, 128, 256, 8, "skewed"),
    Shape(4096, 128, 256, 16, 1),
    Shape(4096, 64, 128, 32, 1),
]

# transformers' batched_mm copies its expert's matrices for each row; above this it is left out.
MOST_COPIED = 2 << 30  # bytes


def draw(shape: Shape, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """New tokens, experts and weights."""
    T, D, _, E, K, load = shape
    logits = torch.randn(T, E) + 0.3 * torch.randn(E)
    if load == "skewed":
        logits[: T * K // 2, 0] += 100  # with K choices this is half of all rows or as near as tokens allow
    if load == "starved":
        logits[:, : E // 4] -= 100
    weight, index = logits.topk(K)
    return torch.randn(T, D).to(dtype), index, weight.softmax(-1)


def ours(experts: mx.GroupedMLP) -> Layer:
    """The layer after the router."""

    def run(x: Tensor, index: Tensor, weight: Tensor) -> Tensor:
        nothing = x.new_empty(x.shape[0], experts.num_experts)
        rows = dispatch(Routing.from_choices(index, weight, logits_TE=nothing, probs_TE=nothing), x)
        return rows.combine(experts(rows))

    return run


def floor(shape: Shape, dtype: torch.dtype, *, passes: int) -> Callable[[], None]:
    """The layer's products alone, each in one piece, by the fastest product that torch has here."""
    N, D, F = shape.tokens * shape.k, shape.dim, shape.hidden
    x, h = torch.randn(N, D).to(dtype), torch.randn(N, F).to(dtype)
    up, down = torch.randn(2 * F, D).to(dtype), torch.randn(D, F).to(dtype)
    product = torch.ops.mkldnn._linear_pointwise

    def run() -> None:
        for _ in range(passes):
            product(x, up, None, "none", [], "")
            product(h, down, None, "none", [], "")

    return run


def measure(shape: Shape, dtype: torch.dtype, *, seconds: float, peers: bool) -> dict[str, Any]:
    """Median milliseconds of all on one shape, and what they mean for ours."""
    torch.manual_seed(0)
    T, D, F, E, K, _ = shape
    experts = mx.GroupedMLP(num_experts=E, dim=D, hidden=F).to(dtype)
    dense = mx.MLP(dim=D, hidden=F * K).to(dtype)
    layers: dict[str, Layer] = {"mixtura": ours(experts), "dense": lambda x, *_: dense(x)}
    modules: list[nn.Module] = [experts, dense]
    if peers:
        loop = ModuleLoop(num_experts=E, dim=D, hidden=F).to(dtype)
        modules.append(loop)
        layers |= {**transformers_layers(experts), "ModuleList loop": loop}
        if T * K * experts.up_proj[0].nbytes * 1.5 > MOST_COPIED:
            layers.pop("transformers batched_mm", None)
    inputs: list[Tensor] = []

    def begin() -> None:
        inputs[:] = draw(shape, dtype)

    def step(layer: Layer) -> float:
        x, index, weight = inputs[0].clone().requires_grad_(), inputs[1], inputs[2].clone().requires_grad_()
        for module in modules:
            module.zero_grad(set_to_none=True)
        return timed(lambda: layer(x, index, weight).backward(gradient))

    gradient = torch.randn(T, D).to(dtype)
    products = floor(shape, dtype, passes=3)
    tasks = {name: lambda layer=layer: step(layer) for name, layer in layers.items()}
    tasks["floor"] = lambda: timed(products)
    times = in_turn(tasks, begin, seconds)
    return summary(times)


def summary(times: dict[str, list[float]]) -> dict[str, Any]:
    """Medians, repeats, and ratios of ours to the others (of medians)."""
    medians = {name: statistics.median(values) for name, values in times.items()}
    others = {name: value for name, value in medians.items() if name not in ("mixtura", "dense", "floor")}
    result: dict[str, Any] = {f"{name} ms": round(1e3 * value, 3) for name, value in medians.items()}
    result |= {f"to {name}": round(medians["mixtura"] / medians[name], 3) for name in ("floor", "dense")}
    if others:
        best = min(others, key=others.__getitem__)
        result |= {"best peer": best, "to best peer": round(medians["mixtura"] / others[best], 3)}
    return {**result, "repeats": len(times["mixtura"])}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20, help="for each row")
    parser.add_argument(
        "--rows", type=int, nargs="*", help="measure these shapes, and put them in place of the committed ones"
    )
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument(
        "--give-memory-back", action="store_true", help="do not keep freed memory as mixtura train does"
    )
    return parser.parse_args()


def main() -> None:
    """Measure the table, print it row by row, and write benchmarks/results/layer_cpu.json."""
    options = parse()
    if not options.give_memory_back:
        keep_freed_memory()
    rows: list[dict[str, Any]] = []
    for number, shape in enumerate(SHAPES):
        if options.rows and number not in options.rows:
            continue
        for dtype in (torch.float32, torch.bfloat16):
            head = {"row": number, **shape._asdict(), "dtype": str(dtype).removeprefix("torch.")}
            figures = measure(shape, dtype, seconds=options.seconds, peers=not options.no_peers)
            rows.append({**head, **figures})
            print(json.dumps(rows[-1]), flush=True)
    result = {"kernel": kernels.describe(), "peers": versions(), "freed memory kept": not options.give_memory_back}
    if options.rows:
        rows = merged(load("layer_cpu")["rows"], rows)
    result |= {"rows": rows, "geometric means": geometric_means(rows)}
    print(json.dumps(result["geometric means"]))
    print(save("layer_cpu", result))


def merged(old: list[dict[str, Any]], new: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The old rows with the new ones in their places."""
    found = {(row["row"], row["dtype"]): row for row in [*old, *new]}
    return [found[key] for key in dict.fromkeys((row["row"], row["dtype"]) for row in old)]


def geometric_means(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Of each ratio, over the shapes."""
    means = {}
    for dtype in ("float32", "bfloat16"):
        trained = [row for row in rows if row["dtype"] == dtype and "to floor" in row]
        for ratio in ("to floor", "to dense", "to best peer"):
            values = [row[ratio] for row in trained if ratio in row]
            if values:
                means[f"{dtype} {ratio}"] = round(statistics.geometric_mean(values), 3)
    return means


if __name__ == "__main__":
    main()
