"""Which kernel a call gets: one pure function of plain facts, and a table that a measured run can replace."""

from contextvars import ContextVar
from functools import cache
from importlib.util import find_spec
from typing import NamedTuple

import torch

# What `mixtura.kernels.use` forces.
forced: ContextVar[str | None] = ContextVar("mixtura_kernel", default=None)

# Of the fused router: what fits into the registers of one program.
MAX_EXPERTS, MAX_CHOICES = 512, 16

GPU_DTYPES = (torch.bfloat16, torch.float16, torch.float32)

# On a GPU, by dtype: from how many rows per expert on `torch.nn.functional.grouped_mm` takes over from triton; None:
# never. Not measured, since no GPU was to be had: triton is the default because it reads rows through indices and
# keeps nothing of size N x D. `python -m benchmarks.layer --device cuda` gives the figures to put here.
CROSSOVER: dict[torch.dtype, float | None] = dict.fromkeys(GPU_DTYPES)


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
    if dtype not in GPU_DTYPES:
        return Choice("cpu", f"no GPU kernel computes in {str(dtype).removeprefix('torch.')}: torch's own products")
    if not triton:
        return Choice("cpu", "a GPU without triton (pip install 'mixtura[gpu]'): torch's own products")
    least = CROSSOVER[dtype]
    if least is not None and rows_per_expert >= least:
        return Choice("grouped_mm", f"a GPU, and at least {least:g} rows per expert, where it was measured faster")
    return Choice("triton", "a GPU with triton")


def choose(device: str, dtype: torch.dtype, *, rows_per_expert: float) -> Choice | None:
    """The kernel that is forced, or that suits a GPU; None: a CPU, whose kernels have a rule of their own.

    Example:
        >>> choose("cpu", torch.float32, rows_per_expert=1.0) is None
        True
    """
    # torch.compile cannot read a context variable; the op that it calls in place of a kernel can, when it runs.
    if not torch.compiler.is_compiling() and (name := forced.get()):
        return Choice(name, "forced by mixtura.kernels.use")
    if device != "cuda":
        return None
    # Whoever compiles for a GPU has triton: torch.compile needs it too.
    installed = torch.compiler.is_compiling() or has_triton()
    return choose_for_gpu(dtype=dtype, rows_per_expert=rows_per_expert, triton=installed)


def is_fused(tensor: torch.Tensor) -> bool:
    """Whether what surrounds the products (routing, combining) runs as triton kernels for this tensor.

    Example:
        >>> is_fused(torch.zeros(1))
        False
    """
    if not tensor.is_cuda or torch._C._are_functorch_transforms_active():
        return False
    found = choose("cuda", tensor.dtype, rows_per_expert=0.0)
    return found is not None and found.kernel == "triton"


def can_fuse_router(logits_TE: torch.Tensor, *, k: int) -> bool:
    """Whether one triton kernel can choose k experts from these logits.

    Example:
        >>> can_fuse_router(torch.zeros(1, 4), k=2)
        False
    """
    return is_fused(logits_TE) and logits_TE.shape[1] <= MAX_EXPERTS and k <= MAX_CHOICES
