"""A made-up run folder that looks like a real one: curves with noise, experts that drift apart, text by expert."""

import json
import math
import random
import re
import zlib
from pathlib import Path

TEXTS = {
    "python": '''def merge(left, right):
    """Merge two sorted lists into one."""
    result = []
    while left and right:
        smaller = left if left[0] <= right[0] else right
        result.append(smaller.pop(0))
    return result + left + right


class Counter:
    def __init__(self, start=0):
        self.value = start

    def step(self, by=1):
        if by <= 0:
            raise ValueError(f"expected a positive step, got {by}")
        self.value += by
        return self.value
''',
    "prose": """It was late in the year when the letter came. The wind had stripped the orchard bare, and nobody on the
farm expected news before the spring. She read it twice, standing at the window, and then put it down.

"So he is coming after all," she said, "and we have not even swept the yard."
""",
    "json": """{
  "name": "mixtura",
  "experts": [{"id": 0, "hidden": 512}, {"id": 1, "hidden": 512}],
  "router": {"kind": "topk", "k": 2, "noise": null},
  "losses": {"load_balance": 0.01, "z": 0.001}
}
""",
    "shell": """#!/usr/bin/env bash
set -euo pipefail
for file in "$@"; do
  if [[ -f "$file" ]]; then
    gzip --best --keep "$file" && echo "done: $file"
  fi
done
""",
}
PIECE = re.compile(r"\n+|[ ]{2,}| ?[A-Za-z_]{1,6}| ?\d+| ?[^\sA-Za-z_\d]{1,2}|\s")


def config(*, layers=2, experts=16):
    return {
        "recipe": "tiny_code",
        "config": {
            "model": {"dim": 256, "layers": 2 * layers, "heads": 4, "moe": {"num_experts": experts, "k": 2}},
            "data": {"texts": ["python", "prose"], "length": 256, "batch": 16},
            "optim": {"name": "adamw", "lr": 0.003, "betas": [0.9, 0.95], "weight_decay": 0.1, "schedule": None},
            "seed": 1,
        },
        "task": "language",
        "units": {"loss": "nats/byte", "items": "tokens", "group": "domain"},
        "versions": {"mixtura": "0.1.0", "torch": "2.13.0", "python": "3.11.7"},
        "machine": {"cpu": "Example CPU", "cores": 8, "device": "cpu"},
        "parameters": {"total": 11_534_336, "active": 3_407_872},
    }


def metrics(*, steps, layers=2, experts=16, domains=tuple(TEXTS), seed=0):
    """One row per step; the last layer stays the least balanced one."""
    draw = random.Random(seed)
    names = [f"blocks.{2 * i + 1}.ff" for i in range(layers)]
    taste = {name: [draw.gauss(0, 1) for _ in range(experts)] for name in names}
    for step in range(1, steps + 1):
        done = step / steps
        loss = 1.15 + 4.3 / (1 + 60 * done) ** 0.75
        row = {
            "step": step,
            "items": step * 4096,
            "seconds": round(step * 0.171, 3),
            "loss": loss * math.exp(draw.gauss(0, 0.035)),
            "lr": 0.003 * min(1.0, 20 * done) * (1 - 0.9 * done),
            "grad_norm": abs(draw.gauss(0.8, 0.1)),
            "items_per_s": draw.gauss(24_000, 900),
            "aux": {"load_balance": 1 + 0.4 * math.exp(-8 * done)},
            "load": {},
            "dropped": {},
            "entropy": {},
        }
        for depth, name in enumerate(names):
            width = (0.16 + 0.1 * depth / layers) * (1 + 5 * math.exp(-14 * done))
            weights = [math.exp(width * (value + draw.gauss(0, 0.4))) for value in taste[name]]
            row["load"][name] = [weight / sum(weights) for weight in weights]
            row["dropped"][name] = max(0.0, 0.11 * math.exp(-9 * done) + draw.gauss(0.004, 0.002))
            row["entropy"][name] = math.log(experts) * (0.45 + 0.5 * math.exp(-5 * done) + draw.gauss(0, 0.01)) + 0.0
        if not layers:
            del row["load"], row["dropped"], row["entropy"]
        if step == steps or step % max(1, steps // 25) == 0:
            losses = {name: (loss + 0.04) * (0.75 + 0.2 * i) for i, name in enumerate(domains)}
            row["val_loss"] = losses | {"mean": sum(losses.values()) / len(losses)}
        yield row


def observations(*, layers=2, experts=16, domains=tuple(TEXTS), seed=0):
    draw = random.Random(seed)
    names = [f"blocks.{2 * i + 1}.ff" for i in range(layers)]
    counts, samples = {}, []
    for depth, name in enumerate(names):
        spread = 0.25 + 0.7 * depth / max(1, layers)
        counts[name] = {
            "counts": [[int(400 * math.exp(draw.gauss(0, spread))) for _ in range(experts)] for _ in domains]
        }
    for i, domain in enumerate(domains):
        pieces = PIECE.findall(TEXTS.get(domain, list(TEXTS.values())[i % len(TEXTS)]))
        chosen = {name: [_expert(piece, name, experts, draw) for piece in pieces] for name in names}
        samples.append({"domain": domain, "pieces": pieces, "experts": chosen})
    generated = [
        {"prompt": "def ", "text": "def read(path):\n    with open(path) as file:\n        return file.read()\n"},
        {"prompt": "The ", "text": "The house was quiet, and the road to the sea lay white in the evening sun.\n"},
    ]
    return {"domains": list(domains), "layers": counts, "samples": samples, "generated": generated}


def _expert(piece, layer, experts, draw):
    kind = "word" if piece.strip().isalpha() else "space" if not piece.strip() else piece.strip()
    key = piece if draw.random() < 0.6 else kind
    return zlib.crc32(f"{layer}{key}".encode()) % experts


def fabricate(folder: Path, *, steps=30, layers=2, experts=16, domains=tuple(TEXTS), seen=True) -> Path:
    """Write a run folder and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config(layers=layers, experts=experts)))
    rows = metrics(steps=steps, layers=layers, experts=experts, domains=domains)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if seen:
        found = observations(layers=layers, experts=experts, domains=domains)
        (folder / "observations.json").write_text(json.dumps(found))
    return folder
