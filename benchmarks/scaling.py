"""How does a mixture scale over processes, and how much of a step is exchange?

    python -m benchmarks.scaling --worlds 1 2 4

One layer, forward and backward, on 1, 2, 4 processes of one thread each, experts spread (`ep`). Strong scaling: the
tokens of one process shared out; weak: as many on each. `exchange` is the time that rank 0 waits for rows of others;
overlap is a step with `chunks=2` over one with `chunks=1`, interleaved, with new inputs each time. A slow network is
imitated by `--delay`: so many milliseconds pass before an exchange is done, while the processor is free. On a
machine with fewer cores than processes the numbers say what the code costs, not what more machines would give.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist
from torch import multiprocessing

import mixtura as mx
from benchmarks.common import save, spread
from mixtura.parallel import ExpertParallel, collective, make_mesh
from mixtura.train.device import keep_freed_memory

DIM, HIDDEN, EXPERTS, K = 128, 256, 8, 2


def make_layer(chunks: int, name: str) -> mx.MoE:
    """The same layer on every rank, its experts spread over all of them."""
    torch.manual_seed(0)
    layer = mx.MoEConfig(dim=DIM, hidden=HIDDEN, num_experts=EXPERTS, k=K, shared_hidden=HIDDEN).build()
    if dist.get_world_size() > 1:
        mesh = make_mesh(ep=dist.get_world_size())["ep"]
        layer.experts = ExpertParallel(layer.experts, mesh, chunks=chunks, layer=name)
    return layer


class Waiting:
    """Adds up how long this rank waits for rows, and makes every exchange last at least `delay` seconds."""

    def __init__(self, delay: float) -> None:
        self.delay, self.seconds = delay, 0.0
        start, wait = collective._Transfer.__init__, collective._Transfer.wait

        def begin(transfer: Any, *arguments: Any) -> None:
            start(transfer, *arguments)
            transfer.began = time.perf_counter()

        def end(transfer: Any) -> Any:
            before = time.perf_counter()
            time.sleep(max(0.0, transfer.began + self.delay - before))
            arrived = wait(transfer)
            self.seconds += time.perf_counter() - before
            return arrived

        collective._Transfer.__init__, collective._Transfer.wait = begin, end  # type: ignore[method-assign]  # measured


def step(layer: mx.MoE, tokens: int) -> Callable[[], None]:
    """Forward and backward on new tokens."""

    def run() -> None:
        x = torch.randn(tokens, DIM, requires_grad=True)
        layer(x).square().mean().backward()
        layer.zero_grad()

    return run


def measure(tokens: int, *, repeats: int, waiting: Waiting) -> dict[str, Any]:
    """Milliseconds of a step without and with overlap, in turn, and of waiting in the first kind."""
    tasks = {chunks: step(make_layer(chunks, f"chunks {chunks}"), tokens) for chunks in (1, 2)}
    seconds: dict[int, list[float]] = {1: [], 2: []}
    waits: list[float] = []
    for repeat in range(repeats + 3):
        for chunks, task in tasks.items():
            dist.barrier()
            waiting.seconds, start = 0.0, time.perf_counter()
            task()
            if repeat >= 3:
                seconds[chunks].append(time.perf_counter() - start)
                waits += [waiting.seconds] if chunks == 1 else []
    ratio = statistics.median(two / one for one, two in zip(seconds[1], seconds[2], strict=True))
    return {"step ms": spread(seconds[1]), "exchange ms": spread(waits), "overlap ratio": round(ratio, 3)}


def one_rank(rank: int, world: int, meet: str, options: argparse.Namespace) -> None:
    """What each process runs; the first writes down what it measured."""
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    keep_freed_memory()
    dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=world)
    waiting = Waiting(options.delay / 1e3)
    found = {
        "strong": measure(options.tokens // world, repeats=options.repeats, waiting=waiting),
        "weak": measure(options.tokens, repeats=options.repeats, waiting=waiting),
    }
    if rank == 0:
        torch.save(found, options.found)
    dist.destroy_process_group()


def main() -> None:
    """Measure, print, and write benchmarks/results/scaling.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--delay", type=float, default=0.0, help="milliseconds that each exchange lasts at least")
    options = parser.parse_args()
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        options.found = str(Path(folder, "found"))
        for world in options.worlds:
            meet = Path(folder, f"meet-{world}").as_uri()
            multiprocessing.spawn(one_rank, args=(world, meet, options), nprocs=world)  # type: ignore[no-untyped-call]  # torch leaves it so
            rows[str(world)] = torch.load(options.found)
    result = {
        "processes": rows,
        "tokens": options.tokens,
        "delay ms": options.delay,
        "sizes": {"D": DIM, "F": HIDDEN, "E": EXPERTS, "K": K},
        "repeats": options.repeats,
    }
    print(result)
    print(save("scaling", result))


if __name__ == "__main__":
    main()
