"""What is each piece of advice about training and fine-tuning mixtures worth? Each is switched off in turn.

    python -m benchmarks.stability

Pre-training: lm-tiny on code, tests and C, at three times its learning rate, where instabilities show. Fine-tuning: a
run of it at its own learning rate goes on with prose alone (`mixtura finetune`). The advice: bf16 experts with an fp32
router, small initial weights and a z-loss (Fedus et al. 2021; Zoph et al. 2022), dropout inside the experts, a larger
learning rate for them, small batches (Zoph et al. 2022, section 5).
"""

import argparse
import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.common import load, measured_on, save, table
from mixtura.layer import MoE
from mixtura.models.gpt import GPT
from mixtura.train.loop import train
from mixtura.train.recipes import get_recipe
from mixtura.train.start import finetuned
from mixtura.train.tasks.language import LanguageConfig

KNOWN, NEW = ("python", "tests", "c"), ("prose",)
Change = Callable[[LanguageConfig], LanguageConfig]


@dataclass(frozen=True, kw_only=True)
class Changed(LanguageConfig):
    """A language model whose routers may be bf16, and whose experts may begin with larger weights."""

    router_bf16: bool = False
    initial_scale: float = 1.0

    def build_model(self) -> GPT:
        """The model, changed."""
        model = super().build_model()
        for layer in model.modules():
            if isinstance(layer, MoE):
                if self.router_bf16:
                    layer.router.register_forward_pre_hook(_round)
                with torch.no_grad():
                    for parameter in layer.experts.parameters():
                        parameter.mul_(self.initial_scale)
        return model


def _round(router: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Weights and inputs with bf16's eight bits, as if the router were kept in it."""
    with torch.no_grad():
        for parameter in router.parameters():
            parameter.copy_(parameter.bfloat16())
    return (inputs[0].bfloat16().to(inputs[0].dtype), *inputs[1:])


def _losses(config: LanguageConfig, **coefficients: float) -> LanguageConfig:
    return replace(config, model=replace(config.model, losses={**config.model.losses, **coefficients}))


PRETRAINING: dict[str, Change] = {
    "all of it": lambda c: c,
    "router in bf16": lambda c: replace(c, router_bf16=True),
    "initial weights of the experts three times as large": lambda c: replace(c, initial_scale=3.0),
    "no z-loss": lambda c: _losses(c, z=0.0),
    "everything in fp32": lambda c: replace(c, precision="fp32"),
}
FINETUNING: dict[str, Change] = {
    "all of it": lambda c: c,
    "router in bf16": lambda c: replace(c, router_bf16=True),
    "no z-loss": lambda c: _losses(c, z=0.0),
    "no dropout in the experts": lambda c: replace(c, model=replace(c.model, dropout=0.0)),
    "experts learn as fast as the rest": lambda c: replace(c, optim=replace(c.optim, expert_lr=1.0)),
    "batches of 32 for 8, a quarter of the steps": lambda c: replace(
        c, data=replace(c.data, batch_size=32), steps=max(1, c.steps // 4), eval_interval=max(1, c.eval_interval // 4)
    ),
    "everything in fp32": lambda c: replace(c, precision="fp32"),
}


def changed(config: LanguageConfig) -> Changed:
    """The same configuration, open to changes."""
    return Changed(**vars(config))


def run(config: LanguageConfig, *, out: Path, name: str) -> tuple[Path, dict[str, Any]]:
    """Train; the last and the best held-out loss, the largest norm of a gradient, and upward jumps of the loss."""
    folder = train(replace(config, out=str(out), name=name))
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    held_out = [row["val_loss"]["mean"] for row in rows if "val_loss" in row]
    losses = [row["loss"] for row in rows]
    late = range(len(losses) // 4, len(losses))
    jumps = sum(losses[i] > statistics.median(losses[i - 20 : i]) + 0.3 for i in late if i >= 20)
    norms = [row["grad_norm"] for row in rows[len(rows) // 4 :]]
    return folder, {"last": held_out[-1], "best": min(held_out), "jumps": jumps, "largest norm": max(norms)}


def pretrain(options: argparse.Namespace) -> dict[str, Any]:
    """Each change of the pre-training."""
    base = get_recipe("lm-tiny")
    assert isinstance(base, LanguageConfig)
    base = replace(base, steps=options.steps, eval_interval=max(1, options.steps // 3))
    base = replace(base, checkpoint_interval=options.steps)
    base = replace(base, precision="bf16", data=replace(base.data, domains=KNOWN))
    rows: dict[str, Any] = {}
    for seed in range(options.seeds):
        fast = replace(changed(base), optim=replace(base.optim, lr=9e-3), seed=seed)
        for name, change in PRETRAINING.items():
            _, result = run(change(fast), out=options.out, name=f"pre-{seed}-{name.replace(' ', '-')}")
            rows.setdefault(name, []).append(result)
    return rows


def finetune(options: argparse.Namespace) -> dict[str, Any]:
    """Each change of the fine-tuning of a pre-trained run, one for each seed."""
    base = get_recipe("lm-tiny")
    assert isinstance(base, LanguageConfig)
    base = replace(base, steps=options.steps, eval_interval=options.steps, checkpoint_interval=options.steps)
    rows: dict[str, Any] = {}
    for seed in range(options.seeds):
        known = replace(base, seed=seed, data=replace(base.data, domains=KNOWN))
        start, _ = run(known, out=options.out, name=f"start-{seed}")
        tuned = finetuned(start)
        assert isinstance(tuned, LanguageConfig)
        advice = replace(
            changed(tuned),
            data=replace(tuned.data, domains=NEW, batch_size=8),
            optim=replace(tuned.optim, expert_lr=2.0),
            precision="bf16",
            steps=options.tuning,
            eval_interval=max(1, options.tuning // 10),
            checkpoint_interval=options.tuning,
        )
        for name, change in FINETUNING.items():
            _, result = run(change(advice), out=options.out, name=f"fine-{seed}-{name.replace(' ', '-')}")
            rows.setdefault(name, []).append(result)
    return rows


def figures() -> str:
    """Both tables, from the committed result."""
    result = load("stability")
    parts = []
    for what, title in (("pretraining", "Pre-training"), ("finetuning", "Fine-tuning")):
        rows = []
        for name, runs in result[what].items():
            means = [statistics.mean(run_[key] for run_ in runs) for key in ("last", "best", "jumps", "largest norm")]
            spread = statistics.stdev(run_["last"] for run_ in runs) if len(runs) > 1 else 0.0
            last = f"{means[0]:.3f} ± {spread:.3f}"
            rows.append([name, last, f"{means[1]:.3f}", f"{means[2]:.1f}", f"{means[3]:.2f}"])
        header = [f"{title}: without", "last nats/byte", "best", "jumps", "largest gradient norm"]
        parts.append(table(header, rows))
    return "\n".join([*parts, f"Means over {result['seeds']} seeds; {measured_on(result)}\n"])


def main() -> None:
    """Train all, and write benchmarks/results/stability.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=600, help="of pre-training")
    parser.add_argument("--tuning", type=int, default=400, help="steps of fine-tuning")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/stability"), help="folder of the runs")
    options = parser.parse_args()
    sizes = {"steps": options.steps, "tuning": options.tuning, "seeds": options.seeds}
    print(save("stability", {**sizes, "finetuning": finetune(options), "pretraining": pretrain(options)}))


if __name__ == "__main__":
    main()
