"""Expert kernels: plain tensors in and out. `grouped_mlp` chooses one; `use` forces it, `describe` tells.

`reference` is the loop that every other kernel is compared with; `cpu` is plain torch, for every device and dtype;
`native` is compiled, faster, and optional: fp32 and bf16 on CPUs, chosen wherever it can run; `triton` and `grouped_mm`
(torch's own grouped products) are for GPUs.

Example:
    >>> sorted(KERNELS)
    ['cpu', 'grouped_mm', 'native', 'reference', 'triton']
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from mixtura.errors import UserError
from mixtura.kernels import cpu, grouped_mm, native, ops, reference
from mixtura.kernels.activations import ACTIVATIONS, Activation, StackedMLP
from mixtura.kernels.choice import Choice, choose, forced
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


def _triton(
    x_TD: Tensor, weight_N: Tensor, index: RowIndex, *, experts: StackedMLP, keep_NF: Tensor | None = None
) -> Tensor:
    from mixtura.kernels import triton

    return triton.grouped_mlp(x_TD, weight_N, index, experts=experts, keep_NF=keep_NF)


KERNELS: dict[str, Callable[..., Tensor]] = {
    "cpu": cpu.grouped_mlp,
    "grouped_mm": grouped_mm.grouped_mlp,
    "native": native.grouped_mlp,
    "reference": reference.grouped_mlp,
    "triton": _triton,
}


@contextmanager
def use(name: str) -> Iterator[None]:
    """Force one kernel of `KERNELS` inside the block.

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
    token = forced.set(name)
    try:
        yield
    finally:
        forced.reset(token)


def _choose(device: str, dtype: torch.dtype, *, rows_per_expert: float, refused: str = "") -> Choice:
    """The kernel that is forced, a GPU's, or on a CPU native unless it is missing or has refused the operands."""
    chosen = choose(device, dtype, rows_per_expert=rows_per_expert)
    if chosen is not None:
        return chosen
    if missing := native.availability():
        return Choice("cpu", f"native cannot run: {missing}")
    if refused:
        return Choice("cpu", f"native leaves it to cpu: {refused}")
    return Choice("native", "the fastest on a CPU; cpu takes what it does not know")


def describe(
    device: str = "cpu", *, dtype: torch.dtype = torch.float32, rows_per_expert: float = 4096.0
) -> dict[str, str]:
    """Which kernel runs on such a device for such operands, why, and on what library.

    Args:
        device: a device's type: "cpu", "cuda".
        dtype: of the operands.
        rows_per_expert: N / E.

    Example:
        >>> describe()["kernel"] in ("cpu", "native")
        True
        >>> with use("grouped_mm"):
        ...     describe("cuda")["kernel"]
        'grouped_mm'
    """
    kernel, reason = _choose(device, dtype, rows_per_expert=rows_per_expert)
    return {
        "kernel": kernel,
        "reason": reason,
        "native": native.availability() or native.instructions(),
        "torch": torch.__version__,
        "cpu capability": torch.backends.cpu.get_cpu_capability(),
        "threads": str(torch.get_num_threads()),
    }


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
    name = _kernel(x_TD, index, experts)
    return KERNELS[name](x_TD, weight_N, index, experts=experts, keep_NF=keep_NF)


def _kernel(x_TD: Tensor, index: RowIndex, experts: StackedMLP) -> str:
    rows_per_expert, refused = index.token_N.shape[0] / index.num_experts, native.unsupported(x_TD, experts)
    name = _choose(x_TD.device.type, x_TD.dtype, rows_per_expert=rows_per_expert, refused=refused).kernel
    if name == "triton" and experts.activation not in ACTIVATIONS:
        raise UserError(f"expected an activation of halves for the triton kernel, got {experts.activation!r}")
    return name


def _passes(x_TD: Tensor, index: RowIndex, experts: StackedMLP) -> ops.Passes:
    name = _kernel(x_TD, index, experts)
    if name == "triton":
        from mixtura.kernels import triton

        return ops.PASSES[triton.NAME]
    return ops.PASSES.get(name) or reference.passes_of(KERNELS[name])


def _forward(
    x_TD: Tensor, weight_N: Tensor, index: RowIndex, *, experts: StackedMLP, **values: Any
) -> tuple[Tensor, Tensor]:
    return _passes(x_TD, index, experts).forward(x_TD, weight_N, index, experts=experts, **values)


def _backward(dy_ND: Tensor, *tensors: Tensor, index: RowIndex, experts: StackedMLP, **values: Any) -> ops.Gradients:
    return _passes(dy_ND, index, experts).backward(dy_ND, *tensors, index=index, experts=experts, **values)


# A graph names no kernel: which one runs is found when it runs, on the machine that runs it.
ops.register("chosen", forward=_forward, backward=_backward)
