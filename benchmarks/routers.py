"""Which router when: every router on the toy task of examples/routers.py, and in the default language model.

    python -m benchmarks.routers                 about 25 minutes on 2 cores
    python -m benchmarks.routers --steps 0       the toy task alone, some minutes

The toy's numbers are means over seeds. The language model is the default recipe with one word changed, trained for
equal steps; routers that look at later tokens are left out there, by name.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from statistics import mean

from benchmarks.common import save
from examples.routers import LINES, run
from mixtura.routers import ROUTERS

# Options of `mixtura train` in place of the default recipe's router (Switch, one choice) and its losses.
MODELS: Mapping[str, list[str]] = {
    "switch": [],
    "hard": ["--model.router", "hard"],
    "top-2": ["--model.router", "topk", "--model.k", "2"],
    "noisy top-2": [
        *("--model.router", "noisy_topk", "--model.k", "2", "--model.losses.load-balance", "0"),
        *("--model.losses.importance", "0.01", "--model.losses.load", "0.01"),
    ],
    "sigmoid + bias, top-2": [
        *("--model.router", "sigmoid_bias", "--model.k", "2", "--model.losses.load-balance", "0"),
    ],
    "top-p": ["--model.router", "top_p", "--model.router-options", "p", "0.5", "max_k", "3"],
    "gshard": ["--model.router", "gshard", "--model.capacity-factor", "2"],
    "hierarchical": ["--model.router", "hierarchical"],
    "hash": ["--model.router", "hash", "--model.router-options", "vocab_size", "512"],
    "random": ["--model.router", "random", "--model.k", "1"],
}


def toy(*, steps: int, seeds: int) -> dict[str, dict[str, float]]:
    """Mean over seeds of each router's numbers."""
    rows = {}
    for name, line in LINES.items():
        runs = [run(line, steps=steps, seed=seed) for seed in range(seeds)]
        rows[name] = {key: round(mean(r[key] for r in runs), 4) for key in runs[0]}
        print(name, rows[name], flush=True)
    return rows


def language_model(steps: int) -> dict[str, dict[str, float]]:
    """Train the default recipe with each router; what its own log says at the end."""
    rows = {}
    for name, options in MODELS.items():
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "mixtura", "train", "lm-tiny", "--out", folder, "--name", "run"]
            sizes = ["--steps", str(steps), "--eval-interval", str(steps), "--checkpoint-interval", str(steps)]
            subprocess.run([*command, *sizes, *options], check=True, capture_output=True)
            log = (Path(folder) / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        last = json.loads(log[-1])
        (share,) = last["load"].values()
        rows[name] = {
            "nats per byte": round(last["val_loss"]["mean"], 4),
            "imbalance": round(max(share) * len(share), 2),
            "tokens/s": round(last["tokens"] / last["seconds"]),
        }
        print(name, rows[name], flush=True)
    return rows


def main() -> None:
    """Measure, print, and write benchmarks/results/routers.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--toy-steps", type=int, default=600)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=900, help="of the language model; 0: leave it out")
    options = parser.parse_args()
    covered = {line.router for line in LINES.values()}
    result: dict[str, object] = {
        "toy": toy(steps=options.toy_steps, seeds=options.seeds),
        "toy steps": options.toy_steps,
        "seeds": options.seeds,
        "routers not in the toy": sorted(set(ROUTERS) - covered),
    }
    if options.steps:
        result["language model"] = language_model(options.steps)
        result["steps"] = options.steps
    print(save("routers", result))


if __name__ == "__main__":
    main()
