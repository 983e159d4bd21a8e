"""The expert kernels for GPUs, in Triton: imported when first used, so that the core needs torch alone.

They run in the interpreter and compile for sm_90, both in tests; none of them has ever met a GPU.
"""

from torch import Tensor

from mixtura.errors import UserError
from mixtura.kernels import ops
from mixtura.kernels.activations import StackedMLP
from mixtura.kernels.choice import GPU_DTYPES
from mixtura.kernels.rows import RowIndex
from mixtura.kernels.triton import passes
from mixtura.kernels.triton.language import INTERPRETED

__all__ = ["NAME", "grouped_mlp"]

NAME = ops.register("triton", forward=passes.forward, backward=passes.backward)


def grouped_mlp(
    x_TD: Tensor, weight_N: Tensor, index: RowIndex, *, experts: StackedMLP, keep_NF: Tensor | None = None
) -> Tensor:
    """`reference.grouped_mlp` by Triton kernels; same arguments, same result up to the order of sums.

    Rows past the experts' counts, which belong to no expert, come out as zeros and have no gradient.

    Raises:
        UserError: tensors that are neither on a GPU nor run under `TRITON_INTERPRET=1`; another dtype than bfloat16,
            float16 and float32.

    Example:
        >>> import torch
        >>> experts = StackedMLP(up=torch.ones(1, 1, 1), down=torch.ones(1, 1, 1), activation="relu")
        >>> index = RowIndex(torch.tensor([0]), torch.tensor([1]), torch.tensor([[0]]), 1, True)
        >>> grouped_mlp(torch.ones(1, 1, dtype=torch.float64), torch.ones(1), index, experts=experts)
        Traceback (most recent call last):
        ...
        mixtura.errors.UserError: expected bfloat16, float16 or float32 for the triton kernel, got torch.float64
    """
    if x_TD.dtype not in GPU_DTYPES:
        raise UserError(f"expected bfloat16, float16 or float32 for the triton kernel, got {x_TD.dtype}")
    if x_TD.device.type != "cuda" and not INTERPRETED:
        device = x_TD.device.type
        raise UserError(f"expected CUDA tensors for the triton kernel, got {device}; TRITON_INTERPRET=1 runs it slowly")
    return ops.call(NAME, x_TD, weight_N, index=index, experts=experts, keep_NF=keep_NF)
