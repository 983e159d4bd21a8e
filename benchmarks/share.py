"""Where a whole layer's time goes, router included, forward and backward: inside the compiled kernel, and around it.

    python -m benchmarks.share

"around": choosing, sorting, weighting, combining, and Python, as a share of the layer's time; the rest is the kernel's
two calls, in which gathering and activation happen while operands are packed and results written, and the router's own
three products, timed alone. "beyond": what the
layer takes more than its products alone (see layer_cpu's "floor"), as a share of its time: an upper bound of everything
that is no product, since it contains what the kernel's own products take longer.
"""

import argparse
import json
import statistics
import time
from typing import Any

import torch
from torch import Tensor

import mixtura as mx
from benchmarks.common import save
from benchmarks.layer_cpu import SHAPES, Shape, floor
from mixtura import kernels
from mixtura.kernels import native
from mixtura.train.bench import in_turn, timed
from mixtura.train.device import keep_freed_memory

# The router decides who goes where, so the loads that layer_cpu makes by hand are left out. A step of its largest shape
# takes seconds, nearly all of them products.
MEASURED = [
    shape
    for shape in SHAPES
    if shape.tokens >= 2048
    and shape.dim >= 512
    and shape.load == "even"
    and (shape.tokens, shape.hidden) != (8192, 2048)
]


def measure(shape: Shape, dtype: torch.dtype, *, seconds: float) -> dict[str, Any]:
    """Median milliseconds of the layer and of the kernel's calls in it, and the two shares."""
    torch.manual_seed(0)
    T, D, F, E, K, _ = shape
    layer = mx.MoEConfig(dim=D, hidden=F, num_experts=E, k=K).build().to(dtype)
    inputs: list[Tensor] = []
    inside: list[float] = []
    call = native._call

    def spy(*arguments: Any) -> None:
        start = time.perf_counter()
        call(*arguments)
        inside[-1] += time.perf_counter() - start

    def begin() -> None:
        inputs[:] = (torch.randn(T, D).to(dtype) for _ in range(2))

    def step() -> float:
        layer.zero_grad(set_to_none=True)
        x = inputs[0].clone().requires_grad_()
        inside.append(0.0)
        return timed(lambda: layer(x).backward(inputs[1]))

    def router() -> None:
        for left, right in ((x_TD, weight_ED.T), (logits_TE, weight_ED), (logits_TE.T, x_TD)):
            torch.mm(left, right)

    x_TD, weight_ED, logits_TE = torch.randn(T, D), torch.randn(E, D), torch.randn(T, E)  # routers compute in fp32
    products = floor(shape, dtype, passes=3)
    native._call = spy
    try:
        tasks = {"layer": step, "floor": lambda: timed(products), "router": lambda: timed(router)}
        times = in_turn(tasks, begin, seconds)
    finally:
        native._call = call
    inside = inside[-len(times["layer"]) :]
    rounds = zip(inside, times["router"], times["layer"], strict=True)
    around = [1 - (kernel + products_of_router) / whole for kernel, products_of_router, whole in rounds]
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {
        **{f"{name} ms": round(1e3 * value, 2) for name, value in medians.items()},
        "kernel ms": round(1e3 * statistics.median(inside), 2),
        "around": round(statistics.median(around), 3),
        "beyond": round(1 - medians["floor"] / medians["layer"], 3),
        "repeats": len(times["layer"]),
    }


def main() -> None:
    """Measure the table, print it row by row, and write benchmarks/results/share.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10, help="for each row")
    options = parser.parse_args()
    keep_freed_memory()
    rows = []
    with kernels.use("native"):
        for shape in MEASURED:
            for dtype in (torch.float32, torch.bfloat16):
                figures = measure(shape, dtype, seconds=options.seconds)
                rows.append({**shape._asdict(), "dtype": str(dtype).removeprefix("torch."), **figures})
                print(json.dumps(rows[-1]), flush=True)
    print(save("share", {"kernel": kernels.describe(), "rows": rows}))


if __name__ == "__main__":
    main()
