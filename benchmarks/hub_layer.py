"""transformers' MoE blocks by family, forward and backward: mixtura's plug-in beside its own implementations.

    python -m benchmarks.hub_layer

One block (router, experts, shared experts where it has them) with the proportions of the family's best-known model,
scaled down to a width of 512. Every repeat draws new inputs and times all implementations on them in turn, with the
same parameters. "peak MB" is what a forward and backward hold at most beyond the parameters, their gradients included.
"""

import argparse
import json
import statistics
import time
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.common import load, save
from benchmarks.hub_families import FAMILIES, Family, fill, output
from benchmarks.peers import versions
from mixtura import kernels
from mixtura.hub.plugin import NAME, register
from mixtura.train.bench import in_turn, timed
from mixtura.train.device import keep_freed_memory

IMPLEMENTATIONS = ("eager", "batched_mm", "grouped_mm", NAME)


def peak(step: Any) -> float:
    """The most memory that the allocator held during a call beyond what it held before: megabytes."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    held = highest = 0
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        highest = max(highest, held)
    return highest / 1e6


def measure(family: Family, dtype: torch.dtype, *, tokens: int, seconds: float) -> dict[str, Any]:
    """Milliseconds of each implementation, medians, and ratios of mixtura to the others."""
    torch.manual_seed(0)
    config = family.configure(family.sizes, NAME)
    block: nn.Module = fill(family.get(family.block)(config), std=0.02).to(dtype)
    inputs: list[Tensor] = []

    def begin() -> None:
        inputs[:] = [torch.randn(1, tokens, family.sizes.dim).to(dtype), torch.randn(1, tokens, family.sizes.dim)]

    def step(name: str) -> None:
        config._experts_implementation = name
        block.zero_grad(set_to_none=True)
        x, dy = inputs[0].clone().requires_grad_(), inputs[1].to(dtype)
        output(block(x)).backward(dy)

    # batched_mm copies the matrices of every assignment, and their gradients come as such copies too.
    copied = 2 * tokens * family.sizes.k * 3 * family.sizes.dim * family.sizes.hidden * dtype.itemsize
    names = [name for name in IMPLEMENTATIONS if name != "batched_mm" or copied < 2e9]
    times = in_turn({name: lambda name=name: timed(lambda: step(name)) for name in names}, begin, seconds)
    peaks = {}
    for name in names:
        block.zero_grad(set_to_none=True)
        peaks[f"{name} peak MB"] = round(peak(lambda name=name: step(name)), 1)
    medians = {name: statistics.median(values) for name, values in times.items()}
    best = min((name for name in medians if name != NAME), key=medians.__getitem__)
    return {
        **{f"{name} ms": round(1e3 * value, 2) for name, value in medians.items()},
        **peaks,
        "best peer": best,
        "speedup": round(medians[best] / medians[NAME], 3),
        "repeats": len(times[NAME]),
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10, help="for each row")
    parser.add_argument("--tokens", type=int, nargs="*", default=[64, 2048])
    parser.add_argument(
        "--families", nargs="*", choices=list(FAMILIES), help="these alone, put in place of the committed ones"
    )
    return parser.parse_args()


def main() -> None:
    """Measure the table, print it row by row, and write benchmarks/results/hub_layer.json."""
    options = parse()
    keep_freed_memory()
    register()
    kept = load("hub_layer")["rows"] if options.families else []
    rows: list[dict[str, Any]] = []
    start = time.perf_counter()
    for name in options.families or FAMILIES:
        for tokens in options.tokens:
            for dtype in (torch.float32, torch.bfloat16):
                head = {"family": name, "tokens": tokens, **FAMILIES[name].sizes._asdict()}
                figures = measure(FAMILIES[name], dtype, tokens=tokens, seconds=options.seconds)
                rows.append({**head, "dtype": str(dtype).removeprefix("torch."), **figures})
                print(json.dumps(rows[-1]), flush=True)
    new = {(row["family"], row["tokens"], row["dtype"]): row for row in rows}
    places = [(row["family"], row["tokens"], row["dtype"]) for row in kept]
    rows = [new.pop(place, row) for place, row in zip(places, kept, strict=True)] + list(new.values())
    means = {
        f"{dtype} speedup, {tokens} tokens": round(
            statistics.geometric_mean(r["speedup"] for r in rows if (r["dtype"], r["tokens"]) == (dtype, tokens)), 3
        )
        for dtype in ("float32", "bfloat16")
        for tokens in sorted({row["tokens"] for row in rows})
    }
    print(json.dumps({"geometric means": means, "seconds": round(time.perf_counter() - start)}))
    print(
        save("hub_layer", {"rows": rows, "geometric means": means, "kernel": kernels.describe(), "peers": versions()})
    )


if __name__ == "__main__":
    main()
