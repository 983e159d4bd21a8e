"""What do compressed gradients cost in loss, and how much less is sent?

    python -m benchmarks.compression

A small language model with mixtures in plain DistributedDataParallel on two processes, once for each of torch's
communication hooks and seed, with equal weights and batches; each process is in a network namespace of its own, where
the kernel counts what it sends. The text is this project's documentation, by bytes; the last tenth is held out.
"""

import argparse
import json
import statistics
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

import mixtura as mx
from benchmarks.common import save
from benchmarks.network import bytes_sent, run_apart
from mixtura.models.gpt import GPT, GPTConfig

LENGTH, BATCH = 64, 8


def text() -> Tensor:
    """Bytes of the documentation."""
    pages = sorted((Path(__file__).parent.parent / "docs").glob("*.md"))
    return torch.frombuffer(bytearray(b"".join(page.read_bytes() for page in pages)), dtype=torch.uint8).long()


def windows(ids: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random windows and the bytes that follow each byte of them."""
    start = torch.randint(len(ids) - LENGTH - 1, (count, 1), generator=generator)
    found = ids[start + torch.arange(LENGTH + 1)]
    return found[:, :-1], found[:, 1:]


def compress(model: DistributedDataParallel, hook: str) -> None:
    """Register a hook by its name here."""
    if hook.startswith("PowerSGD"):
        rank = int(hook.rsplit(" ", 1)[1])
        state = powerSGD_hook.PowerSGDState(None, matrix_approximation_rank=rank, start_powerSGD_iter=10)
        model.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
    elif hook != "none":
        known = {"fp16": default_hooks.fp16_compress_hook, "bf16": bf16}
        model.register_comm_hook(None, known[hook])


def bf16(group: Any, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """Torch's own hook, which DistributedDataParallel keeps to NCCL by its name: gloo sums the same numbers."""
    return default_hooks.bf16_compress_hook(group, bucket)


def train(hook: str, *, seed: int, steps: int) -> tuple[float, float]:
    """The held-out loss at the end, and megabytes sent by this process in a step."""
    ids = text()
    cut = len(ids) * 9 // 10
    torch.manual_seed(seed)
    bare = make_model()
    model = DistributedDataParallel(bare)
    compress(model, hook)
    optimizer = torch.optim.AdamW(mx.param_groups(model, lr=3e-3))
    generator = torch.Generator().manual_seed(1000 * seed + dist.get_rank())
    sent = []
    for _ in range(steps):
        before = bytes_sent()
        inputs, targets = windows(ids[:cut], BATCH, generator)
        model(inputs, targets_BL=targets).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        sent.append(bytes_sent() - before)
    with torch.no_grad():
        inputs, targets = windows(ids[cut:], 128, torch.Generator().manual_seed(7))
        loss = bare.eval()(inputs, targets_BL=targets).item()
    return loss, statistics.median(sent) / 1e6


def make_model() -> GPT:
    """Two blocks, one of them with a mixture."""
    sizes = {"dim": 64, "layers": 2, "heads": 4, "hidden": 128, "num_experts": 8, "k": 2, "moe_every": 2}
    return GPT(GPTConfig(vocab_size=256, context=LENGTH, router="topk", **sizes))


def one_rank(options: argparse.Namespace) -> None:
    """Every hook with every seed; the first process writes down what it measured."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    meet = Path(options.folder, "meet").as_uri()
    dist.init_process_group("gloo", init_method=meet, rank=options.rank, world_size=2)
    found: dict[str, Any] = {}
    for hook in options.hooks:
        runs = [train(hook, seed=seed, steps=options.steps) for seed in range(options.seeds)]
        losses = [loss for loss, _ in runs]
        spread = {"mean": statistics.mean(losses), "deviation": statistics.stdev(losses)}
        found[hook] = {"loss": spread, "MB a step": statistics.median(sent for _, sent in runs)}
    if options.rank == 0:
        Path(options.folder, "found").write_text(json.dumps(found), encoding="utf-8")
    dist.barrier()
    dist.destroy_process_group()


def main() -> None:
    """Measure, print, and write benchmarks/results/compression.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seeds", type=int, default=3)
    hooks = ["none", "fp16", "bf16", "PowerSGD 1", "PowerSGD 4"]
    parser.add_argument("--hooks", nargs="+", default=hooks)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.folder:
        one_rank(options)
        return
    with tempfile.TemporaryDirectory() as folder:
        given = ["--steps", options.steps, "--seeds", options.seeds, "--folder", folder, "--hooks", *options.hooks]
        me = [sys.executable, "-m", "benchmarks.compression", *map(str, given)]
        run_apart([[*me, "--rank", str(rank)] for rank in range(2)], delay_ms=0.0)
        found = json.loads(Path(folder, "found").read_text(encoding="utf-8"))
    print(json.dumps(found, indent=1))
    print(save("compression", {"steps": options.steps, "seeds": options.seeds, "hooks": found}))


if __name__ == "__main__":
    main()
