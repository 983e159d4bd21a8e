"""A whole training step of transformers' models, mixtura's plug-in beside its own implementations of the experts.

    python -m benchmarks.hub_step

Forward, loss, backward and AdamW of a small model with the proportions of its family: 4 layers of width 512, a
vocabulary of 8192, 2 sequences of 512 tokens. Every repeat draws new tokens and times all, each on its own copy.
"""

import argparse
import copy
import json
import statistics
from typing import Any

import torch
from torch import nn

from benchmarks.common import load, save
from benchmarks.hub_families import FAMILIES
from benchmarks.peers import versions
from mixtura import kernels
from mixtura.hub.plugin import NAME, register
from mixtura.train.bench import in_turn, timed
from mixtura.train.device import keep_freed_memory

MODELS = {"Mixtral": "mixtral", "OLMoE": "olmoe", "Qwen3-MoE": "qwen3_moe", "gpt-oss": "gpt_oss"}
SIZES = {
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "vocab_size": 8192,
    **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id")),
}


def build(name: str, dtype: torch.dtype) -> nn.Module:
    """A model of transformers with random weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = FAMILIES[name].sizes
    values = {**SIZES, "hidden_size": sizes.dim, **FAMILIES[name].names(sizes)}
    config = AutoConfig.for_model(MODELS[name], **values)
    model: nn.Module = AutoModelForCausalLM.from_config(config).to(dtype).train()
    return model


def measure(name: str, dtype: torch.dtype, *, seconds: float) -> dict[str, Any]:
    """Median milliseconds of a step with each implementation."""
    torch.manual_seed(0)
    model = build(name, dtype)
    models, steps, ids = {}, {}, []
    for implementation in ("eager", "grouped_mm", NAME):
        models[implementation] = copy.deepcopy(model)
        models[implementation].set_experts_implementation(implementation)
        optimizer = torch.optim.AdamW(models[implementation].parameters(), lr=1e-4, foreach=True)

        def step(model: Any = models[implementation], optimizer: torch.optim.Optimizer = optimizer) -> None:
            model(input_ids=ids[0], labels=ids[0]).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        steps[implementation] = lambda step=step: timed(step)

    def begin() -> None:
        ids[:] = [torch.randint(SIZES["vocab_size"], (2, 512))]

    medians = {key: statistics.median(values) for key, values in in_turn(steps, begin, seconds).items()}
    best = min((key for key in medians if key != NAME), key=medians.__getitem__)
    figures = {f"{key} ms": round(1e3 * value, 1) for key, value in medians.items()}
    return {**figures, "best peer": best, "speedup": round(medians[best] / medians[NAME], 3)}


def main() -> None:
    """Measure, print row by row, and write benchmarks/results/hub_step.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30, help="for each row")
    parser.add_argument("--models", nargs="*", choices=list(MODELS), help="some of them; the others' rows stay")
    options = parser.parse_args()
    keep_freed_memory()
    register()
    chosen = options.models or list(MODELS)
    rows = [row for row in load("hub_step")["rows"] if row["model"] not in chosen] if options.models else []
    for name in chosen:
        for dtype in (torch.float32, torch.bfloat16):
            figures = measure(name, dtype, seconds=options.seconds)
            rows.append({"model": name, "dtype": str(dtype).removeprefix("torch."), **figures})
            print(json.dumps(rows[-1]), flush=True)
    rows.sort(key=lambda row: list(MODELS).index(row["model"]))
    means = {
        dtype: round(statistics.geometric_mean(row["speedup"] for row in rows if row["dtype"] == dtype), 3)
        for dtype in ("float32", "bfloat16")
    }
    print(json.dumps({"geometric means": means}))
    print(save("hub_step", {"rows": rows, "geometric means": means, "kernel": kernels.describe(), **versions()}))


if __name__ == "__main__":
    main()
