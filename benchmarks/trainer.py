"""How fast does `mixtura train` train, against the same architecture under transformers' Trainer?

    pip install 'mixtura[bench]' && python -m benchmarks.trainer

Both get equal sizes (the default recipe's, with SwiGLU experts as Qwen3-MoE has them), equal batches of the same text,
AdamW, gradients clipped to norm 1, fp32, and the same threads. Runs take turns, each in a process of its own; a run's
speed is that of its median step after a warm-up, so that start-up and evaluation count for neither side.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.common import save
from mixtura.models.gpt import GPT
from mixtura.train.loop import train
from mixtura.train.recipes import get_recipe
from mixtura.train.tasks.language import LanguageConfig

WARMUP = 60
PEERS = ("eager", "grouped_mm")  # batched_mm copies an expert's matrices for every token: minutes for these runs


def recipe(steps: int) -> LanguageConfig:
    """The default recipe with the gated experts that Qwen3-MoE has."""
    base = get_recipe("lm-tiny")
    return replace(
        base,
        model=replace(base.model, activation="swiglu"),
        optim=replace(base.optim, warmup=10),
        steps=steps,
        eval_interval=steps,
        checkpoint_interval=steps,
    )


def run_ours(steps: int) -> dict[str, float]:
    """Train as the command does; milliseconds of the median step from the run's own log."""
    with tempfile.TemporaryDirectory() as folder:
        train(replace(recipe(steps), out=folder, name="run"))
        lines = (Path(folder) / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    seconds = [json.loads(line)["seconds"] for line in lines]
    return {"ms": median_step(seconds)}


def median_step(seconds: list[float]) -> float:
    """Milliseconds of the median step after the warm-up, from the times at which the steps ended."""
    return 1e3 * statistics.median(b - a for a, b in zip(seconds[WARMUP:], seconds[WARMUP + 1 :], strict=False))


def run_theirs(steps: int, implementation: str) -> dict[str, float]:
    """Train Qwen3-MoE of the same sizes with transformers' Trainer."""
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM, Trainer, TrainerCallback, TrainingArguments

    config = recipe(steps)
    task = config.prepare()
    sizes = task.config.model
    batch, length = config.data.batch_size, config.data.seq_len
    model = Qwen3MoeForCausalLM(
        Qwen3MoeConfig(
            vocab_size=sizes.vocab_size,
            hidden_size=sizes.dim,
            intermediate_size=sizes.hidden,
            moe_intermediate_size=sizes.hidden,
            num_hidden_layers=sizes.layers,
            decoder_sparse_step=sizes.moe_every,
            num_experts=sizes.num_experts,
            num_experts_per_tok=sizes.k,
            num_attention_heads=sizes.heads,
            num_key_value_heads=sizes.heads,
            head_dim=sizes.dim // sizes.heads,
            max_position_embeddings=length,
            tie_word_embeddings=sizes.tie_weights,
            output_router_logits=True,
            experts_implementation=implementation,
        )
    )
    stream = task.stream()
    ids = torch.cat([next(stream).inputs_BL for _ in range(steps)])
    ends: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: object, **__: object) -> None:
            ends.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            per_device_train_batch_size=batch,
            max_steps=steps,
            max_grad_norm=1.0,
            learning_rate=config.optim.lr,
            report_to=[],
            save_strategy="no",
            logging_steps=50,
            disable_tqdm=True,
            use_cpu=True,
        )
        rows = [{"input_ids": row, "labels": row} for row in ids]
        Trainer(model=model, args=arguments, train_dataset=rows, callbacks=[Clock()]).train()
    parameters = sum(p.numel() for p in model.parameters())
    return {"ms": median_step(ends), "parameters": parameters, "ours": parameters_of(sizes)}


def parameters_of(sizes: object) -> int:
    """Parameters of our model of these sizes."""
    return sum(p.numel() for p in GPT(sizes).parameters())


def compare(*, repeats: int, steps: int) -> dict[str, object]:
    """Let the runs take turns; each peer's implementation of the experts is one of them."""
    runs = {"mixtura train": ["ours"], **{f"Trainer, {name}": [name] for name in PEERS}}
    found: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, arguments in runs.items():
            command = [sys.executable, "-m", "benchmarks.trainer", "--steps", str(steps), "--run", *arguments]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found[name].append(json.loads(done.stdout.splitlines()[-1])["ms"])
            print(f"{name}: {found[name][-1]:.1f} ms a step", flush=True)
    data = recipe(steps).data
    tokens = data.batch_size * data.seq_len
    rows = {
        name: {"ms per step": [round(v, 1) for v in ms], "tokens/s": round(1e3 * tokens / statistics.median(ms))}
        for name, ms in found.items()
    }
    best = max((name for name in rows if name.startswith("Trainer")), key=lambda name: rows[name]["tokens/s"])
    ratios = [theirs / ours for ours, theirs in zip(found["mixtura train"], found[best], strict=True)]
    return {"runs": rows, "best peer": best, "times the best peer's tokens/s": round(statistics.median(ratios), 2)}


def main() -> None:
    """Measure, print, and write benchmarks/results/trainer.json; with --run, one run of this process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=260)
    parser.add_argument("--run", choices=["ours", *PEERS])
    options = parser.parse_args()
    if options.run:
        run = run_ours(options.steps) if options.run == "ours" else run_theirs(options.steps, options.run)
        print(json.dumps(run))
        return
    result = compare(repeats=options.repeats, steps=options.steps)
    print(result)
    print(save("trainer", result))


if __name__ == "__main__":
    main()
