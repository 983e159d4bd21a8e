"""How does a mixture scale over processes, what does each layout cost, and when does overlap pay?

    python -m benchmarks.scaling scaling     strong and weak scaling over 1, 2, 4 processes
    python -m benchmarks.scaling overlap     chunks of 2 and 4 under network delays, by rows on each process
    python -m benchmarks.scaling layouts     milliseconds, bytes sent and parameters held, of each layout of 4 processes

Each process has one thread. `scaling` takes one layer, forward and backward, its experts spread (`ep`): strong, the
tokens of one process shared out; weak, as many on each; `exchange` is the time that rank 0 waits for rows of others.
`overlap` and `layouts` run in network namespaces (`benchmarks.network`), where a packet takes so many milliseconds and
bytes are counted by the kernel. Steps to compare are interleaved, with new inputs each time. On a machine with fewer
cores than processes the times say what the code costs, and not what more machines would give.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist
from torch import nn

import mixtura as mx
from benchmarks.common import RESULTS, load, save, spread
from benchmarks.network import bytes_sent, run_apart
from mixtura.parallel import ExpertParallel, clip_grad_norm, collective, make_mesh, parallelize
from mixtura.train.device import keep_freed_memory

SIZES = {"D": 128, "F": 256, "E": 8, "K": 2}
WORLDS, TOKENS = (1, 2, 4), 4096
DELAYS, ROWS, CHUNKS = (0.0, 1.0, 5.0), (512, 2048, 8192), (1, 2, 4)
LAYOUTS = (
    {"dp": 4},
    {"fsdp": 4},
    {"ep": 4},
    {"ep": 4, "node_size": 2},
    {"dp": 2, "ep": 2},
    {"fsdp": 2, "ep": 2},
    {"ep": 2, "tp": 2},
)


def make_layer() -> mx.MoE:
    """The same layer on every rank."""
    torch.manual_seed(0)
    sizes = {"dim": SIZES["D"], "hidden": SIZES["F"], "num_experts": SIZES["E"], "k": SIZES["K"]}
    return mx.MoEConfig(**sizes, shared_hidden=SIZES["F"]).build()


def spread_layer(chunks: int) -> mx.MoE:
    """A layer with its experts spread over all ranks."""
    layer = make_layer()
    if dist.get_world_size() > 1:
        mesh = make_mesh(ep=dist.get_world_size())["ep"]
        layer.experts = ExpertParallel(layer.experts, mesh, chunks=chunks, layer=f"chunks {chunks}")
    return layer


class Waiting:
    """Adds up how long this rank waits for rows of others."""

    def __init__(self) -> None:
        self.seconds = 0.0
        wait = collective._Transfer.wait

        def timed(transfer: Any) -> Any:
            before = time.perf_counter()
            arrived = wait(transfer)
            self.seconds += time.perf_counter() - before
            return arrived

        collective._Transfer.wait = timed  # type: ignore[method-assign]  # measured


def step(layer: nn.Module, tokens: int) -> Callable[[], None]:
    """Forward and backward on new tokens."""

    def run() -> None:
        x = torch.randn(tokens, SIZES["D"], requires_grad=True)
        layer(x).square().mean().backward()
        layer.zero_grad()

    return run


def interleaved(
    tasks: Mapping[str, Callable[[], None]], repeats: int, after: Callable[[str], None] = lambda _: None
) -> dict[str, list[float]]:
    """Seconds of each repeat of each task, in turn, all ranks together; the first two are not kept."""
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for repeat in range(repeats + 2):
        for name, task in tasks.items():
            dist.barrier()
            start = time.perf_counter()
            task()
            if repeat >= 2:
                seconds[name].append(time.perf_counter() - start)
                after(name)
    return seconds


def scaling(repeats: int) -> dict[str, Any]:
    """One world: strong and weak."""
    waiting, found = Waiting(), {}
    for kind, tokens in (("strong", TOKENS // dist.get_world_size()), ("weak", TOKENS)):
        task, waits = step(spread_layer(1), tokens), []

        def timed(task: Callable[[], None] = task) -> None:
            waiting.seconds = 0.0
            task()

        seconds = interleaved({kind: timed}, repeats, lambda _, waits=waits: waits.append(waiting.seconds))
        found[kind] = {"step ms": spread(seconds[kind]), "exchange ms": spread(waits)}
    return found


def overlap(repeats: int) -> dict[str, Any]:
    """One delay: the time of a step in chunks over that of one in a piece, by rows on each process."""
    found = {}
    for rows in ROWS:
        tasks = {str(chunks): step(spread_layer(chunks), rows // SIZES["K"]) for chunks in CHUNKS}
        seconds = interleaved(tasks, repeats)
        whole = seconds[str(CHUNKS[0])]
        ratios = {
            str(chunks): round(statistics.median(a / b for a, b in zip(seconds[str(chunks)], whole, strict=True)), 3)
            for chunks in CHUNKS[1:]
        }
        found[str(rows)] = {"step ms": spread(whole), "ratio by chunks": ratios}
    return found


def layouts(repeats: int) -> dict[str, Any]:
    """Every layout of four processes: a whole step of a small model, 4,096 tokens over all data ranks."""
    tasks, sent, held = {}, {}, {}
    for layout in LAYOUTS:
        name = " ".join(f"{axis}={size}" for axis, size in layout.items())
        torch.manual_seed(0)
        dense = [nn.Linear(SIZES["D"], SIZES["D"]) for _ in range(2)]
        model = nn.Sequential(dense[0], make_layer(), dense[1], make_layer())
        axes = {axis: size for axis, size in layout.items() if axis != "node_size"}
        parallelize(model, make_mesh(**axes), node_size=layout.get("node_size", 1))
        optimizer = torch.optim.AdamW(mx.param_groups(model, lr=1e-3))
        tokens = TOKENS * layout.get("tp", 1) // dist.get_world_size()

        def task(model: nn.Module = model, optimizer: Any = optimizer, tokens: int = tokens, name: str = name) -> None:
            before = bytes_sent()
            model(torch.randn(tokens, SIZES["D"])).square().mean().backward()
            clip_grad_norm(model, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            sent.setdefault(name, []).append(bytes_sent() - before)

        tasks[name] = task
        held[name] = sum(getattr(p, "_local_tensor", p).numel() for p in model.parameters())
    seconds = interleaved(tasks, repeats)
    found = {}
    for name in tasks:
        total = torch.tensor([statistics.median(sent[name]), held[name]], dtype=torch.float64)
        dist.all_reduce(total)
        mean_sent, mean_held = (total / dist.get_world_size()).tolist()
        megabytes = {"MB sent by each process": round(mean_sent / 1e6, 2), "parameters held": round(mean_held)}
        found[name] = {"step ms": spread(seconds[name]), **megabytes}
    return found


SECTIONS = {"scaling": scaling, "overlap": overlap, "layouts": layouts}


def one_rank(options: argparse.Namespace) -> None:
    """What each process runs; the first writes down what it measured."""
    torch.set_num_threads(1)
    keep_freed_memory()
    meet = Path(options.folder, "meet").as_uri()
    dist.init_process_group("gloo", init_method=meet, rank=options.rank, world_size=options.world)
    found = SECTIONS[options.section](options.repeats)
    if options.rank == 0:
        Path(options.folder, "found").write_text(json.dumps(found), encoding="utf-8")
    dist.barrier()
    dist.destroy_process_group()


def measure(section: str, *, world: int, repeats: int, delay_ms: float | None) -> Any:
    """One section on so many processes; with a delay, on the network of `benchmarks.network`."""
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        me = [sys.executable, "-m", "benchmarks.scaling", section, "--repeats", str(repeats), "--folder", folder]
        commands = [[*me, "--world", str(world), "--rank", str(rank)] for rank in range(world)]
        if delay_ms is None:
            for process in [subprocess.Popen(command) for command in commands]:
                if process.wait():
                    raise subprocess.CalledProcessError(process.returncode, process.args)
        else:
            run_apart(commands, delay_ms=delay_ms)
        return json.loads(Path(folder, "found").read_text(encoding="utf-8"))


def main() -> None:
    """Measure a section, print it, and put it into benchmarks/results/scaling.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("section", choices=SECTIONS)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--delay", type=float, default=0.0, help="milliseconds on the network, for layouts")
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--world", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.folder:
        one_rank(options)
        return
    found: dict[str, Any]
    if options.section == "scaling":
        found = {
            str(world): measure("scaling", world=world, repeats=options.repeats, delay_ms=None) for world in WORLDS
        }
    elif options.section == "overlap":
        found = {f"{delay:g}": measure("overlap", world=2, repeats=options.repeats, delay_ms=delay) for delay in DELAYS}
    else:
        found = measure("layouts", world=4, repeats=options.repeats, delay_ms=options.delay)
    before = load("scaling") if (RESULTS / "scaling.json").exists() else {}
    before.pop("machine", None)
    facts = {"cores": os.cpu_count(), "repeats": options.repeats}
    result = {**before, "tokens": TOKENS, "sizes": SIZES, options.section: {**facts, "found": found}}
    print(json.dumps(found, indent=1))
    print(save("scaling", result))


if __name__ == "__main__":
    main()
