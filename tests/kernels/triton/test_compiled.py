"""The kernels compile for sm_90 and spill no register, in a process that does not interpret them.

`python -m benchmarks.kernels --compile-only` does the same for every entry of the table.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PROGRAM = """
import json, sys, torch
from benchmarks.compiled import SHARED_MEMORY, resources
from benchmarks.launches import Shape, call, draw
found = []
shape = Shape(tokens=4096, dim=512, hidden=512, num_experts=8, k=2)
call(draw(shape, device="meta", dtype=torch.bfloat16), start=found.append)
for launch in found:
    if launch.name not in ("up", "hidden", "dx rows", "dw up"):
        continue
    print(json.dumps({"kernel": launch.name, "limit": SHARED_MEMORY, **resources(launch)}))
"""


@pytest.mark.slow
def test_what_training_in_bf16_uses_spills_nothing_and_runs_on_tensor_cores():
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TRITON_INTERPRET": "0"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True, cwd=ROOT
    )
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["kernel"] for row in rows] == ["up", "hidden", "dx rows", "dw up"]
    for row in rows:
        assert row["spilled bytes"] == 0, row
        assert row["shared memory"] <= row["limit"], row
        assert row["products"] == "wgmma", row
        assert not row["serialized"], row
