"""Seconds on a GPU, where work is started and not awaited; on a CPU for dry runs."""

import statistics
import time
from collections.abc import Callable

import torch


def seconds_of(task: Callable[[], object], *, device: str) -> float:
    """How long the device works on a task."""
    if device == "cpu":
        start = time.perf_counter()
        task()
        return time.perf_counter() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    task()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3


def product_ceiling(dtype: torch.dtype, *, device: str, repeats: int, size: int | None = None) -> float:
    """Floating-point operations per second of one large square product by the vendor's library."""
    size = size or (256 if device == "cpu" else 8192)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    seconds = [seconds_of(lambda: a @ b, device=device) for _ in range(repeats + 3)][3:]
    return 2 * size**3 / statistics.median(seconds)
