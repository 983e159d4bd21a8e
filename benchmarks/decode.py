"""Few tokens without gradients, as in decoding: beside reading the touched experts once, and beside other layers.

    python -m benchmarks.decode

A step of few tokens does little work on each matrix that it reads, so its floor is the time to read the matrices of the
experts that it touches. "to reading" divides by their bytes at the speed at which a large copy in the same round reads
and writes. Every repeat draws new tokens, and so other experts; all layers take them in turn.
"""

import argparse
import json
import statistics
from typing import Any

import torch
from torch import Tensor

import mixtura as mx
from benchmarks.common import save
from benchmarks.layer_cpu import MOST_COPIED, Shape, draw, ours
from benchmarks.peers import Layer, ModuleLoop, transformers_layers, versions
from mixtura import kernels
from mixtura.train.bench import in_turn, timed
from mixtura.train.device import keep_freed_memory

WIDTHS = [(512, 2048, 8, 2), (1024, 2048, 16, 2), (1024, 512, 64, 8)]  # D, F, E, K
TOKENS = (1, 2, 4, 8, 16)


def measure(shape: Shape, dtype: torch.dtype, *, seconds: float) -> dict[str, Any]:
    """Median milliseconds of each layer, and what they mean for ours."""
    torch.manual_seed(0)
    T, D, F, E, K, _ = shape
    experts = mx.GroupedMLP(num_experts=E, dim=D, hidden=F).to(dtype)
    loop = ModuleLoop(num_experts=E, dim=D, hidden=F).to(dtype)
    layers: dict[str, Layer] = {"mixtura": ours(experts), **transformers_layers(experts), "ModuleList loop": loop}
    expert = experts.up_proj[0].nbytes + experts.down_proj[0].nbytes
    if T * K * expert > MOST_COPIED:
        layers.pop("transformers batched_mm", None)
    inputs: list[Tensor] = []
    touched: list[int] = []

    def begin() -> None:
        inputs[:] = draw(shape, dtype)
        touched.append(inputs[1].unique().numel() * expert)

    source = torch.randn(64 << 18)
    target = torch.zeros_like(source)
    with torch.no_grad():
        tasks = {name: lambda layer=layer: timed(lambda: layer(*inputs)) for name, layer in layers.items()}
        times = in_turn({**tasks, "copy": lambda: timed(lambda: target.copy_(source))}, begin, seconds)
    bandwidths = [2 * source.nbytes / value for value in times.pop("copy")]
    medians = {name: statistics.median(values) for name, values in times.items()}
    best = min((name for name in medians if name != "mixtura"), key=medians.__getitem__)
    touched = touched[-len(times["mixtura"]) :]
    ratios = [took * speed / read for took, speed, read in zip(times["mixtura"], bandwidths, touched, strict=True)]
    return {
        **{f"{name} ms": round(1e3 * value, 3) for name, value in medians.items()},
        "to reading": round(statistics.median(ratios), 3),
        "best peer": best,
        "to best peer": round(medians["mixtura"] / medians[best], 3),
        "MB touched": round(statistics.median(touched) / 1e6, 1),
        "copy GB/s": round(statistics.median(bandwidths) / 1e9, 1),
        "repeats": len(times["mixtura"]),
    }


def means(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Geometric means of the ratios over all rows of a dtype."""
    return {
        f"{dtype} {ratio}": round(statistics.geometric_mean(r[ratio] for r in rows if r["dtype"] == dtype), 3)
        for dtype in ("float32", "bfloat16")
        for ratio in ("to reading", "to best peer")
    }


def main() -> None:
    """Measure the table, print it row by row, and write benchmarks/results/decode.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3, help="for each row")
    options = parser.parse_args()
    keep_freed_memory()
    rows = []
    for widths in WIDTHS:
        for tokens in TOKENS:
            for dtype in (torch.float32, torch.bfloat16):
                shape = Shape(tokens, *widths)
                figures = measure(shape, dtype, seconds=options.seconds)
                rows.append({**shape._asdict(), "dtype": str(dtype).removeprefix("torch."), **figures})
                print(json.dumps(rows[-1]), flush=True)
    result = {"kernel": kernels.describe(), "peers": versions(), "rows": rows, "geometric means": means(rows)}
    print(json.dumps(result["geometric means"]))
    print(save("decode", result))


if __name__ == "__main__":
    main()
