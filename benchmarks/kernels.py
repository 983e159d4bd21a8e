"""What does each Triton kernel need of a GPU, and how close does it come to the product ceiling?

    python -m benchmarks.kernels --compile-only     registers, spills, shared memory on sm_90; needs no GPU
    python -m benchmarks.kernels                    time of each kernel, on a GPU

Every configuration of the table in `mixtura/kernels/triton/configs.py` is compiled, with and without biases, for gated
and plain activations. Exits with 1 if any of them spills registers.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import torch

from benchmarks.common import save
from benchmarks.launches import Shape, call, draw
from benchmarks.timing import product_ceiling, seconds_of
from mixtura.kernels.triton.launch import Launch

# By rows per expert, such that each height of the table is met.
SHAPES = {
    "training": Shape(tokens=32768, dim=2048, hidden=1024, num_experts=64, k=8),
    "64 rows per expert": Shape(tokens=512, dim=2048, hidden=1024, num_experts=64, k=8),
    "32 rows per expert": Shape(tokens=256, dim=2048, hidden=1024, num_experts=64, k=8),
    "decoding": Shape(tokens=16, dim=2048, hidden=1024, num_experts=64, k=8),
    "odd sizes": Shape(tokens=1000, dim=200, hidden=100, num_experts=5, k=2),
    "many experts": Shape(tokens=8192, dim=1024, hidden=512, num_experts=512, k=16),
    "tiny": Shape(tokens=12, dim=32, hidden=16, num_experts=3, k=2),
}
COMPILED, TIMED = [*SHAPES][:-1], ["training", "64 rows per expert", "decoding", "many experts"]
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
# Activation, biases, dropout, slots: the branches of the kernels.
VARIANTS: list[dict[str, Any]] = [
    {"activation": "swiglu"},
    {"activation": "swiglu", "bias": True},
    {"activation": "gelu", "bias": True},
    {"activation": "relu"},
    {"activation": "clamped_swiglu", "bias": True, "dropout": True, "slots": False},
]


def launches() -> Iterator[tuple[dict[str, Any], Launch]]:
    """Every launch to be compiled, on the meta device, with what it came from; alike ones once."""
    seen = set()
    for dtype in DTYPES:
        for shape in COMPILED:
            for variant in VARIANTS:
                found: list[Launch] = []
                call(draw(SHAPES[shape], device="meta", dtype=DTYPES[dtype], **variant), start=found.append)
                for launch in found:
                    fixed = {n: v for n, v in launch.arguments.items() if not isinstance(v, torch.Tensor)}
                    fixed = {name: _as_compiled(name, value) for name, value in fixed.items()}
                    key = json.dumps([launch.name, dtype, fixed, launch.config])
                    if key not in seen:
                        seen.add(key)
                        yield {"kernel": launch.name, "dtype": dtype, "shape": shape, **variant}, launch


def _as_compiled(name: str, value: Any) -> Any:
    """A constant as it is; of a size only what the compiler looks at: is it 1, is it a multiple of 16."""
    is_size = name.strip("_") in ("T", "E", "K", "N", "D", "F", "X", "Y") and not isinstance(value, bool)
    return (value == 1, value % 16 == 0) if is_size and name != "K" else value


def compile_all() -> list[dict[str, Any]]:
    """What each kernel needs."""
    from benchmarks.compiled import resources

    rows = []
    for origin, launch in launches():
        rows.append({**origin, "config": list(launch.config), **resources(launch)})
        print(json.dumps(rows[-1]), flush=True)
    return rows


def flops_of(launch: Launch, rows: int) -> int:
    """Floating-point operations of a product kernel; 0 of the others."""
    size = launch.arguments
    if launch.name == "up":
        return 2 * rows * size["D"] * size["F"] * (2 if size["GATED"] else 1)
    if launch.name == "hidden":
        return 2 * rows * size["D"] * size["F"]
    return 2 * rows * size["X"] * size["Y"] if "Y" in size else 0


def time_all(names: list[str], *, dtype: str, device: str, repeats: int) -> list[dict[str, Any]]:
    """The median time of each kernel over calls with fresh routings, and its share of the product ceiling."""
    ceiling = product_ceiling(DTYPES[dtype], device=device, repeats=repeats)
    rows: list[dict[str, Any]] = [{"kernel": "product ceiling", "dtype": dtype, "TFLOP/s": round(ceiling / 1e12, 3)}]
    for name in names:
        seconds: dict[str, list[float]] = {}
        flops: dict[str, int] = {}

        def timed(launch: Launch, seconds: dict = seconds, flops: dict = flops, name: str = name) -> None:
            # A name stands twice where forward and backward share a kernel.
            seconds.setdefault(launch.name, []).append(seconds_of(launch.run, device=device))
            flops[launch.name] = flops_of(launch, SHAPES[name].rows)

        for repeat in range(repeats + 3):
            call(draw(SHAPES[name], device=device, dtype=DTYPES[dtype]), start=timed)
            if repeat < 3:  # compiled and warmed up
                seconds.clear()
        for kernel, times in seconds.items():
            middle = statistics.median(times)
            row = {"kernel": kernel, "dtype": dtype, "shape": name, "us": round(1e6 * middle, 1)}
            if flops[kernel]:
                row["share of ceiling"] = round(flops[kernel] / middle / ceiling, 3)
            rows.append(row)
            print(json.dumps(row), flush=True)
    return rows


def main() -> None:
    """Compile or measure, print, and write benchmarks/results/kernels_sm90.json or kernels.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compile-only", action="store_true", help="needs no GPU")
    parser.add_argument("--device", default="cuda", help="cpu: a dry run of the benchmark, with TRITON_INTERPRET=1")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=TIMED)
    parser.add_argument("--repeats", type=int, default=30)
    options = parser.parse_args()
    shapes = {name: asdict(shape) for name, shape in SHAPES.items()}
    if options.compile_only:
        from benchmarks.compiled import SHARED_MEMORY

        rows = compile_all()
        print(save("kernels_sm90", {"target": "sm_90", "shapes": shapes, "rows": rows}))
        bad = [row for row in rows if row["spilled bytes"] or row["shared memory"] > SHARED_MEMORY]
        for row in bad:
            print("spills registers, or needs more shared memory than there is:", json.dumps(row), file=sys.stderr)
        sys.exit(bool(bad))
    rows = time_all(options.shapes, dtype=options.dtype, device=options.device, repeats=options.repeats)
    if options.device != "cpu":
        print(save("kernels", {"device": torch.cuda.get_device_name(), "shapes": shapes, "rows": rows}))


if __name__ == "__main__":
    main()
