"""Expert kernels: plain tensors in and out. `grouped_mlp` chooses one; `use` forces it, `describe` tells.

`reference` is the loop that every other kernel is compared with; `cpu` is plain torch, for every device and dtype;
`native` is compiled, faster, and optional: fp32 and bf16 on CPUs. It is chosen wherever it can run.

Example:
    >>> sorted(KERNELS)
    ['cpu', 'native', 'reference']
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from mixtura.errors import UserError
from mixtura.kernels import cpu, native, ops, reference
from mixtura.kernels.activations import ACTIVATIONS, Activation, StackedMLP
from mixtura.kernels.rows import RowIndex, combine_rows, gather_rows, is_traced, sum_rows

__all__ = [
    "ACTIVATIONS",
    "KERNELS",
    "Activation",
    "RowIndex",
    "StackedMLP",
    "combine_rows",
    "describe",
    "gather_rows",
    "grouped_mlp",
    "sum_rows",
    "use",
]

KERNELS: dict[str, Callable[..., Tensor]] = {
    "cpu": cpu.grouped_mlp,
    "native": native.grouped_mlp,
    "reference": reference.grouped_mlp,
}
_forced: ContextVar[str | None] = ContextVar("mixtura_kernel", default=None)


@contextmanager
def use(name: str) -> Iterator[None]:
    """Force one kernel inside the block: "reference", "cpu" or "native".

    Raises:
        UserError: the name is no kernel's, or the kernel cannot run here.

    Example:
        >>> with use("reference"):
        ...     describe()["kernel"]
        'reference'
    """
    if name not in KERNELS:
        raise UserError(f"expected a kernel among {sorted(KERNELS)}, got {name!r}")
    if name == "native" and (reason := native.availability()):
        raise UserError(f"expected a kernel that can run here, got 'native': {reason}")
    token = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(token)


def describe() -> dict[str, str]:
    """Which kernel runs now, why, and on what library.

    Example:
        >>> sorted(describe())
        ['cpu capability', 'kernel', 'native', 'reason', 'threads', 'torch']
    """
    forced, missing = _forced.get(), native.availability()
    reason = "forced by mixtura.kernels.use"
    if not forced:
        reason = (
            f"native cannot run: {missing}"
            if missing
            else "the fastest; cpu takes what it does not know or is compiled"
        )
    return {
        "kernel": forced or ("cpu" if missing else "native"),
        "reason": reason,
        "native": missing or native.instructions(),
        "torch": torch.__version__,
        "cpu capability": torch.backends.cpu.get_cpu_capability(),
        "threads": str(torch.get_num_threads()),
    }


def _choose(x_TD: Tensor, experts: StackedMLP) -> str:
    if forced := _forced.get():
        return forced
    return "cpu" if native.availability() or native.unsupported(x_TD, experts) else "native"


def grouped_mlp(
    x_TD: Tensor, weight_N: Tensor, index: RowIndex, *, experts: StackedMLP, keep_NF: Tensor | None = None
) -> Tensor:
    """Every expert's MLP on its own rows, times the row's weight; see `reference.grouped_mlp` for the shapes.

    Example:
        >>> index = RowIndex(torch.tensor([0]), torch.tensor([1]), torch.tensor([[0]]), 1, True)
        >>> experts = StackedMLP(up=torch.ones(1, 1, 1), down=torch.ones(1, 1, 1), activation="relu")
        >>> grouped_mlp(torch.tensor([[3.0]]), torch.tensor([2.0]), index, experts=experts).tolist()
        [[6.0]]
    """
    if is_traced(x_TD):
        return ops.call("chosen", x_TD, weight_N, index=index, experts=experts, keep_NF=keep_NF)
    return KERNELS[_choose(x_TD, experts)](x_TD, weight_N, index, experts=experts, keep_NF=keep_NF)


def _passes() -> ops.Passes:
    name = _forced.get() or "cpu"  # native has no separate passes yet
    return ops.PASSES.get(name) or reference.passes_of(KERNELS[name])


def _forward(*arguments: Any, **values: Any) -> tuple[Tensor, Tensor]:
    return _passes().forward(*arguments, **values)


def _backward(*arguments: Any, **values: Any) -> ops.Gradients:
    return _passes().backward(*arguments, **values)


# A graph names no kernel: which one runs is found when it runs, on the machine that runs it.
ops.register("chosen", forward=_forward, backward=_backward)
