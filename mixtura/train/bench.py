"""What a layer of given sizes costs on this machine: `mixtura bench`.

Every repeat draws new tokens, so that the experts' row counts change as in training, and times everything in turn, so
that a busy moment of the machine meets all of it.
"""

import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mixtura import kernels
from mixtura.config import MoEConfig
from mixtura.errors import UserError
from mixtura.experts import MLP
from mixtura.train.device import choose_device, keep_freed_memory
from mixtura.train.progress import say, show_table
from mixtura.train.run import cpu_name

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
DENSE = "dense MLP"
# What can run at all on a kind of device, in the order of the table; the loop reference is there to show what it costs.
BACKENDS = {"cpu": ("native", "cpu", "grouped_mm", "reference"), "cuda": ("triton", "grouped_mm", "cpu", "reference")}
PASSES = ("forward", "both")  # both: forward and backward


@dataclass(frozen=True, kw_only=True)
class BenchArguments:
    """Time a mixture layer with each kernel that can run here, beside a dense MLP of equal work per token.

    Example:
        >>> BenchArguments().tokens
        2048
    """

    dim: int = 512
    """D, width."""
    hidden: int = 2048
    """F, hidden width of each expert."""
    num_experts: int = 8
    """E."""
    k: int = 2
    """Experts per token."""
    tokens: int = 2048
    """T, tokens in one call."""
    activation: str = "swiglu"
    """relu, gelu, silu, swiglu, geglu or clamped_swiglu."""
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of the parameters and the tokens."""
    device: str = "auto"
    """auto, cpu, cuda, ..."""
    threads: int = 0
    """Of the CPU; 0: as many as torch takes."""
    seconds: float = 10.0
    """About how long each of the two passes is repeated."""
    json: str = ""
    """A file for the figures; empty: none."""


def machine() -> dict[str, Any]:
    """Processor, threads and versions, as results are stored with.

    Example:
        >>> "torch" in machine()
        True
    """
    from mixtura import __version__

    return {
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "mixtura": __version__,
        "date": time.strftime("%Y-%m-%d"),
    }


def timed(work: Callable[[], object]) -> float:
    """Seconds that a call takes; where there is a GPU, until it has done what was asked of it.

    Example:
        >>> timed(lambda: None) >= 0
        True
    """
    _await_gpu()
    start = time.perf_counter()
    work()
    _await_gpu()
    return time.perf_counter() - start


def _await_gpu() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def in_turn(
    tasks: Mapping[str, Callable[[], float]], begin: Callable[[], None], seconds: float
) -> dict[str, list[float]]:
    """Seconds of each task in each round; after a first round that does not count, except for what is too slow.

    Args:
        tasks: each gives its own seconds.
        begin: called before each round, to draw new inputs.
        seconds: for all rounds together, at least 3 and at most 100; a task that alone takes longer runs once.

    Example:
        >>> len(in_turn({"nothing": lambda: 0.0}, lambda: None, 0.0)["nothing"])
        3
    """
    begin()
    first = {name: task() for name, task in tasks.items()}
    slow = {name for name, value in first.items() if value > max(seconds, 0.1)}
    times: dict[str, list[float]] = {name: [first[name]] if name in slow else [] for name in tasks}
    end = time.perf_counter() + seconds
    rounds = 0
    while rounds < 3 or (time.perf_counter() < end and rounds < 100):
        begin()
        for name, task in tasks.items():
            if name not in slow:
                times[name].append(task())
        rounds += 1
    return times


def bench(given: BenchArguments) -> dict[str, Any]:
    """Measure and print a table; returns what `given.json` gets: machine, arguments, rows, and what cannot run here.

    Raises:
        UserError: sizes below 1, k above num_experts, an unknown activation, no such device, a file that cannot be
            written.

    Example:
        >>> bench(BenchArguments(tokens=0))
        Traceback (most recent call last):
        ...
        mixtura.errors.UserError: tokens: expected more than 0, got 0
    """
    for name in ("tokens", "seconds"):
        if not getattr(given, name) > 0:
            raise UserError(f"{name}: expected more than 0, got {getattr(given, name)}")
    device = choose_device(given.device, threads=given.threads)
    keep_freed_memory()
    dtype = DTYPES[given.dtype]
    layer = _layer(given).to(device, dtype)
    dense = MLP(dim=given.dim, hidden=given.hidden * given.k, activation=given.activation).to(device, dtype)
    inputs: list[Tensor] = []

    def begin() -> None:
        inputs[:] = (torch.randn(given.tokens, given.dim, device=device, dtype=dtype) for _ in range(2))

    begin()
    names, missing = _backends(layer, inputs[0], device=device.type)
    modules: dict[str, tuple[nn.Module, str | None]] = {name: (layer, name) for name in names} | {DENSE: (dense, None)}
    seconds = {}
    for what in PASSES:
        tasks = {name: partial(_once, *one, inputs, what=what) for name, one in modules.items()}
        seconds[what] = in_turn(tasks, begin, given.seconds)
    rows = [_row(name, {what: times[name] for what, times in seconds.items()}, given.tokens) for name in modules]
    for row in rows:
        row |= {f"{what} to dense": round(row[f"{what} ms"] / rows[-1][f"{what} ms"], 3) for what in PASSES}
    default = kernels.describe(device.type, dtype=dtype, rows_per_expert=given.tokens * given.k / given.num_experts)
    found = {
        "machine": {**machine(), "device": _name(device)},
        "arguments": asdict(given),
        "default": default,
        "rows": rows,
        "missing": missing,
    }
    if given.json:
        _write(given.json, found)
    _show(given, found)
    return found


def _layer(given: BenchArguments) -> nn.Module:
    return MoEConfig(
        dim=given.dim,
        hidden=given.hidden,
        num_experts=given.num_experts,
        k=given.k,
        router="switch" if given.k == 1 else "topk",  # a softmax over one choice is 1, whatever its logit
        activation=given.activation,
    ).build()


def _once(module: nn.Module, kernel: str | None, inputs: list[Tensor], *, what: str) -> float:
    """Seconds of one call on the round's tokens."""
    module.zero_grad(set_to_none=True)
    x, dy = inputs[0].clone().requires_grad_(what == "both"), inputs[1]

    def run() -> None:
        if what == "both":
            module(x).backward(dy)
        else:
            with torch.no_grad():
                module(x)

    if kernel is None:
        return timed(run)
    with kernels.use(kernel):
        return timed(run)


def _backends(layer: nn.Module, x_TD: Tensor, *, device: str) -> tuple[list[str], dict[str, str]]:
    """The kernels that compute these operands here, and why the others do not."""
    names, missing = [], {}
    for name in BACKENDS.get(device, ("cpu", "reference")):
        try:
            _once(layer, name, [x_TD[:1], x_TD[:1]], what="both")
            names.append(name)
        except UserError as error:
            missing[name] = str(error)
    return names, missing


def _row(name: str, seconds: Mapping[str, list[float]], tokens: int) -> dict[str, Any]:
    row: dict[str, Any] = {"name": name}
    for what, times in seconds.items():
        quartiles = statistics.quantiles(times, n=4) if len(times) > 1 else times * 3
        low, middle, high = (round(1e3 * value, 4) for value in quartiles)
        row |= {f"{what} ms": middle, f"{what} quartiles": [low, high], f"{what} repeats": len(times)}
        row[f"{what} tokens/s"] = round(tokens / statistics.median(times))
    return row


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _write(path: str, found: Mapping[str, Any]) -> None:
    try:
        Path(path).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"expected a file that can be written, got {path!r} ({error.strerror})") from error


def _show(given: BenchArguments, found: Mapping[str, Any]) -> None:
    m, default = found["machine"], found["default"]
    sizes = f"T {given.tokens:,}, D {given.dim:,}, F {given.hidden:,}, E {given.num_experts:,}, K {given.k}"
    header = ["", "forward ms", "to dense", "forward + backward ms", "to dense", "tokens/s"]
    lines = []
    for row in found["rows"]:
        chosen = " (chosen)" if row["name"] == default["kernel"] else ""
        figures = [text for what in PASSES for text in (f"{row[f'{what} ms']:.2f}", f"{row[f'{what} to dense']:.2f}x")]
        lines.append([row["name"] + chosen, *figures, f"{row['both tokens/s']:,}"])
    show_table(f"{sizes}, {given.activation}, {given.dtype}", header, lines)
    what = m["cpu"] if m["device"] == "cpu" else m["device"]
    native = f", native {default['native']}" if m["device"] == "cpu" else ""
    facts = f"{what}, {m['threads']} threads, torch {m['torch']}, mixtura {m['mixtura']}{native}"
    repeats = min(row["both repeats"] for row in found["rows"])
    notes = [facts, f"Medians of {repeats} rounds or more with new tokens each. Dense: an MLP of hidden width K F."]
    say("\n".join([*notes, *(f"{name}: {reason}" for name, reason in found["missing"].items())]))
