"""What does a mixture's layer cost beside a dense MLP of equal work, forward and backward, at small widths?

    python -m benchmarks.layer
    python -m benchmarks.layer --device cuda        on a GPU, beside the layers of others: benchmarks/layer_gpu.py

Every repeat draws new inputs, so that the experts' row counts change as in training. Both ways of handling freed memory
are measured, each in a process of its own: the C library's default, and kept for the next step as `mixtura train` does.
"""

import argparse
import json
import multiprocessing
import statistics
from typing import Any

import torch

import mixtura as mx
from benchmarks.common import interleave, save
from mixtura.train.device import keep_freed_memory

SHAPES = [
    {"tokens": 4096, "dim": 64, "hidden": 128, "num_experts": 16},
    {"tokens": 4096, "dim": 64, "hidden": 128, "num_experts": 32},
    {"tokens": 4096, "dim": 128, "hidden": 256, "num_experts": 16},
    {"tokens": 4096, "dim": 128, "hidden": 512, "num_experts": 8},
]


def measure(shape: dict[str, int], keep: bool, repeats: int) -> dict[str, float]:  # noqa: FBT001  # starmap has no names
    """Median milliseconds of the mixture and of the dense MLP, and the median of their ratios."""
    if keep:
        keep_freed_memory()
    torch.manual_seed(0)
    sizes = {"dim": shape["dim"], "hidden": shape["hidden"], "activation": "gelu"}
    losses = {"load_balance": 1e-2, "z": 1e-3}
    mixture = mx.MoEConfig(**sizes, num_experts=shape["num_experts"], k=1, router="switch", losses=losses).build()
    dense = mx.MLP(**sizes)

    def step(layer: torch.nn.Module) -> None:
        x = torch.randn(shape["tokens"], shape["dim"], requires_grad=True)
        layer(x).square().mean().backward()

    seconds = interleave(
        {"mixture": lambda: step(mixture), "dense": lambda: step(dense)}, repeats=repeats, warmup=repeats // 4
    )
    ratios = [a / b for a, b in zip(seconds["mixture"], seconds["dense"], strict=True)]
    medians = {f"{name} ms": round(1e3 * statistics.median(times), 2) for name, times in seconds.items()}
    return {**medians, "ratio": round(statistics.median(ratios), 2)}


def main() -> None:
    """Measure every shape both ways, print, and write benchmarks/results/layer.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=80)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    options, others = parser.parse_known_args()
    if options.device == "cuda":
        from benchmarks import layer_gpu

        layer_gpu.main([*others, "--repeats", str(options.repeats)])
        return
    rows: list[dict[str, Any]] = []
    for shape in SHAPES:
        for keep in (False, True):
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                figures = pool.starmap(measure, [(shape, keep, options.repeats)])[0]
            rows.append({**shape, "freed memory kept": keep, **figures})
            print(json.dumps(rows[-1]))
    print(save("layer", {"rows": rows, "repeats": options.repeats}))


if __name__ == "__main__":
    main()
