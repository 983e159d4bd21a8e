"""What does each Triton kernel need of a GPU, and how close does it come to the product ceiling?

    python -m benchmarks.kernels --compile-only     registers, spills, shared memory on sm_90; needs no GPU
    python -m benchmarks.kernels                    time of each kernel, on a GPU

Every configuration of the table in `mixtura/kernels/triton/configs.py` is compiled, with and without biases, for a
gated and a plain activation. Exits with 1 if any of them spills registers.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.common import save
from benchmarks.compiled import SHARED_MEMORY, list_launches, resources
from mixtura.kernels.triton.launch import Launch

# Rows per expert that meet each height of the table.
SHAPES = {
    "training": {"tokens": 32768, "dim": 2048, "hidden": 1024, "num_experts": 64, "k": 8},
    "64 rows per expert": {"tokens": 512, "dim": 2048, "hidden": 1024, "num_experts": 64, "k": 8},
    "32 rows per expert": {"tokens": 256, "dim": 2048, "hidden": 1024, "num_experts": 64, "k": 8},
    "decoding": {"tokens": 16, "dim": 2048, "hidden": 1024, "num_experts": 64, "k": 8},
    "odd sizes": {"tokens": 1000, "dim": 200, "hidden": 100, "num_experts": 5, "k": 2},
}
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def cases() -> Iterator[dict[str, Any]]:
    """Every combination that is compiled."""
    for dtype in DTYPES:
        for shape in SHAPES:
            for activation, bias in (("swiglu", False), ("swiglu", True), ("gelu", True)):
                yield {"dtype": dtype, "shape": shape, "activation": activation, "bias": bias}


def launches_of(case: dict[str, Any]) -> Iterator[Launch]:
    """The launches of a case."""
    return list_launches(
        **SHAPES[case["shape"]], dtype=DTYPES[case["dtype"]], activation=case["activation"], bias=case["bias"]
    )


def compile_all(kinds: set[str]) -> list[dict[str, Any]]:
    """What each kernel needs; kernels that are specialised alike are compiled once."""
    rows, seen = [], set()
    for case in cases():
        if case["dtype"] not in kinds:
            continue
        for launch in launches_of(case):
            fixed = {n: v for n, v in launch.arguments.items() if not isinstance(v, torch.Tensor)}
            key = json.dumps([launch.name, case["dtype"], fixed, launch.config], default=str)
            if key in seen:
                continue
            seen.add(key)
            rows.append({"kernel": launch.name, **case, "config": list(launch.config), **resources(launch)})
            print(json.dumps(rows[-1]), flush=True)
    return rows


def main() -> None:
    """Compile or measure, print, and write benchmarks/results/kernels_sm90.json or kernels.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compile-only", action="store_true", help="needs no GPU")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    options = parser.parse_args()
    rows = compile_all(set(options.dtypes))
    spilling = [row for row in rows if row["spilled bytes"] or row["shared memory"] > SHARED_MEMORY]
    print(save("kernels_sm90", {"target": "sm_90", "rows": rows}))
    for row in spilling:
        print("spills registers, or needs more shared memory than there is:", json.dumps(row), file=sys.stderr)
    sys.exit(bool(spilling))


if __name__ == "__main__":
    main()
