"""Which kernel a call gets: one pure function of plain facts, and a table that a measured run can replace."""

from functools import cache
from importlib.util import find_spec
from typing import NamedTuple

import torch

TRITON_DTYPES = (torch.bfloat16, torch.float16, torch.float32)

# On a GPU, by dtype: from how many rows per expert on `torch.nn.functional.grouped_mm` takes over from triton; None:
# never. Not measured, since no GPU was to be had: triton is the default because it reads rows through indices and
# keeps nothing of size N x D. `python -m benchmarks.layer --device cuda` gives the figures to put here.
CROSSOVER: dict[torch.dtype, float | None] = dict.fromkeys(TRITON_DTYPES)


class Choice(NamedTuple):
    """A kernel's name and why it was chosen.

    Example:
        >>> Choice("cpu", "no GPU").kernel
        'cpu'
    """

    kernel: str
    reason: str


@cache
def has_triton() -> bool:
    """Whether the package triton is installed; it is not imported.

    Example:
        >>> has_triton() in (True, False)
        True
    """
    return find_spec("triton") is not None


def choose_for_gpu(*, dtype: torch.dtype, rows_per_expert: float, triton: bool) -> Choice:
    """The kernel for CUDA tensors.

    Args:
        dtype: of the operands.
        rows_per_expert: N / E.
        triton: whether the package is installed.

    Example:
        >>> choose_for_gpu(dtype=torch.bfloat16, rows_per_expert=4096.0, triton=True).kernel
        'triton'
        >>> choose_for_gpu(dtype=torch.bfloat16, rows_per_expert=4096.0, triton=False)
        Choice(kernel='cpu', reason="a GPU without triton (pip install 'mixtura[gpu]'): torch's own products")
    """
    if dtype not in TRITON_DTYPES:
        return Choice("cpu", f"no GPU kernel computes in {str(dtype).removeprefix('torch.')}: torch's own products")
    if not triton:
        return Choice("cpu", "a GPU without triton (pip install 'mixtura[gpu]'): torch's own products")
    least = CROSSOVER[dtype]
    if least is not None and rows_per_expert >= least:
        return Choice("grouped_mm", f"a GPU, and at least {least:g} rows per expert, where it was measured faster")
    return Choice("triton", "a GPU with triton")
