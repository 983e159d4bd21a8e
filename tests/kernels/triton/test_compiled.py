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
from benchmarks.compiled import SHARED_MEMORY, list_launches, resources
shape = {"tokens": 4096, "dim": 512, "hidden": 512, "num_experts": 8, "k": 2}
for launch in list_launches(dtype=torch.bfloat16, activation="swiglu", bias=False, **shape):
    print(json.dumps({"kernel": launch.name, "limit": SHARED_MEMORY, **resources(launch)}))
"""


@pytest.mark.slow
def test_what_training_in_bf16_uses_spills_nothing_and_runs_on_tensor_cores():
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TRITON_INTERPRET": "0"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True, cwd=ROOT
    )
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    names = ["schedule", "up", "down", "schedule", "hidden", "dx rows", "combine", "dw up", "dw down"]
    assert [row["kernel"] for row in rows] == names
    for row in rows:
        assert row["spilled bytes"] == 0, row
        assert row["shared memory"] <= row["limit"], row
        is_product = row["kernel"] not in ("schedule", "combine")
        assert row["products"] == ("wgmma" if is_product else "fma"), row
        assert not row["serialized"], row
