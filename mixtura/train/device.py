"""Where a run computes, and the state of its random numbers."""

import ctypes
from typing import Any

import torch

from mixtura.errors import UserError


def choose_device(name: str, *, threads: int = 0) -> torch.device:
    """The device of a name; "auto": cuda, else mps, else cpu. Also sets the CPU threads, unless they are 0.

    Raises:
        UserError: no such device, or not on this machine.

    Example:
        >>> choose_device("cpu")
        device(type='cpu')
    """
    if threads:
        torch.set_num_threads(threads)
    if name == "auto":
        return torch.device(
            "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        )
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # it must hold values, which "meta" does not
    except (RuntimeError, AssertionError) as error:  # torch asserts where it was built without a device
        reason = str(error).splitlines()[0]
        raise UserError(f"expected a device of this machine, got {name!r} ({reason}); try --device cpu") from error
    return device


def keep_freed_memory() -> None:
    """Let the C library keep freed memory for the next step instead of giving it back to the system.

    A training step allocates the same tensors again and again. By default glibc returns blocks of some hundred kB and
    more at once, so that each step waits for thousands of fresh pages; a small mixture's cost beside a dense MLP falls
    by a tenth without that (`python -m benchmarks.layer`). It is a setting of the whole process, so commands make it
    and importing never does. Where the C library has no such setting nothing happens.

    Example:
        >>> keep_freed_memory()
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # musl, macOS, Windows
        return
    trim_threshold, top_pad, mmap_threshold = -1, -2, -3
    mallopt(mmap_threshold, 1 << 30)
    mallopt(trim_threshold, (1 << 31) - 1)
    mallopt(top_pad, 1 << 26)


def random_state() -> dict[str, Any]:
    """The state of torch's random numbers on every device."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    mps = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None
    return {"cpu": torch.get_rng_state(), "cuda": cuda, "mps": mps}


def set_random_state(state: dict[str, Any]) -> None:
    """Go back to a state that `random_state` gave; devices that are not on this machine are passed over."""
    torch.set_rng_state(state["cpu"])
    for number, cuda in enumerate(state["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(cuda, number)
    if state["mps"] is not None and torch.backends.mps.is_available():
        torch.mps.set_rng_state(state["mps"])
