"""The compiled library's dense parts of a Transformer: RMS normalisation, causal attention, cross-entropy.

For fp32 on a CPU, where torch composes these of elementary operations, with several passes over memory for each.
`can_run` says whether the library takes a tensor; `mixtura.models.fused` does without it otherwise.
"""

import ctypes
from typing import Any

import torch
from torch import Tensor

from mixtura.errors import UserError
from mixtura.kernels.choice import forced
from mixtura.kernels.native import availability, library, variant
from mixtura.kernels.rows import is_traced

NORM, NORM_GRAD, ATTEND, ATTEND_GRAD, CROSS_ENTROPY = range(5)
TASK_ROWS = 128
_pointers = ("x", "weight", "cos", "sin", "target", "dy", "y", "inverse", "dx", "parts")


class _Problem(ctypes.Structure):
    """`MixturaDense` of csrc/dense.h, field by field."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("batch", "length", "heads", "width")),
        *((name, ctypes.c_int32) for name in ("kind", "threads")),
        *((name, ctypes.c_float) for name in ("epsilon", "scale")),
        *((name, ctypes.c_void_p) for name in _pointers),
    )


def can_run(*tensors: Tensor) -> bool:
    """Whether the library takes these: plain fp32 on a CPU, in no trace, the library there, and no other kernel forced.

    Example:
        >>> can_run(torch.zeros(1, dtype=torch.float64))
        False
    """
    if any(is_traced(x) for x in tensors):  # asked first: a tracer cannot look at what follows
        return False
    if forced.get() not in (None, "native") or availability():
        return False
    return all(
        x.dtype is torch.float32 and x.device.type == "cpu" and type(x) in (Tensor, torch.nn.Parameter) for x in tensors
    )


def _call(kind: int, **fields: Any) -> int:
    """Run one part; tensors are passed by address, and kept, contiguous, by the caller until this returns."""
    values = {name: value.data_ptr() if isinstance(value, Tensor) else value for name, value in fields.items()}
    problem = _Problem(kind=kind, threads=torch.get_num_threads(), **values)
    found: int = library().functions.mixtura_dense(ctypes.byref(problem), variant().encode())  # type: ignore[union-attr]  # `can_run` has asked
    if found == 1:
        raise RuntimeError(f"mixtura_dense found no variant {variant()!r}")
    return found  # what else it means is told in csrc/native.cpp


def norm(x_ND: Tensor, weight_D: Tensor, *, epsilon: float) -> tuple[Tensor, Tensor]:
    """y = weight x / sqrt(mean x^2 + epsilon): (N, D) and (N,), the factors of x.

    Example:
        >>> one = torch.ones(1, 2)
        >>> norm(3 * one, one[0], epsilon=0.0)[0].tolist() if can_run(one) else [[1.0, 1.0]]
        [[1.0, 1.0]]
    """
    x_ND, (N, D) = x_ND.contiguous(), x_ND.shape
    y_ND, inverse_N = torch.empty_like(x_ND), x_ND.new_empty(N)
    _call(NORM, length=N, width=D, epsilon=epsilon, x=x_ND, weight=weight_D, y=y_ND, inverse=inverse_N)
    return y_ND, inverse_N


def norm_grad(dy_ND: Tensor, x_ND: Tensor, weight_D: Tensor, *, inverse_N: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of x and weight.

    Example:
        >>> one = torch.ones(1, 1)
        >>> norm_grad(one, one, one[0], inverse_N=one[0])[1].tolist() if can_run(one) else [1.0]
        [1.0]
    """
    dy_ND, x_ND, (N, D) = dy_ND.contiguous(), x_ND.contiguous(), x_ND.shape
    dx_ND, parts = torch.empty_like(x_ND), x_ND.new_empty(-(-N // TASK_ROWS), D)
    tensors = {"x": x_ND, "weight": weight_D, "dy": dy_ND, "inverse": inverse_N, "dx": dx_ND, "parts": parts}
    _call(NORM_GRAD, length=N, width=D, **tensors)
    return dx_ND, parts.sum(0)


def can_attend(length: int, width: int) -> bool:
    """Whether one head of this length and width has room in the scratch memory of a thread.

    Example:
        >>> can_attend(1 << 20, 128) if can_run(torch.zeros(1)) else False
        False
    """
    return not _call(ATTEND, batch=0, heads=1, length=length, width=width)


def attend(x_BLHd: Tensor, cos: Tensor, sin: Tensor, *, epsilon: float) -> tuple[Tensor, Tensor]:
    """Causal attention of queries and keys that are normalised and turned by their places' angles.

    Args:
        x_BLHd: (B, L, 3H, d): queries, keys, values, for which `can_attend`.
        cos: (L, d / 2) of the angles.
        sin: the same.
        epsilon: of the normalisation.

    Returns:
        (B, L, H, d), and the logarithms of the softmax's sums (B, H, L).

    Example:
        >>> x, one = torch.ones(1, 1, 3, 2), torch.ones(1, 1)
        >>> attend(x, one, 0 * one, epsilon=0.0)[0].tolist() if can_run(x) else [[[[1.0, 1.0]]]]
        [[[[1.0, 1.0]]]]
    """
    x_BLHd, (B, L, H3, d) = x_BLHd.contiguous(), x_BLHd.shape
    y_BLHd, sums_BHL = x_BLHd.new_empty(B, L, H3 // 3, d), x_BLHd.new_empty(B, H3 // 3, L)
    tensors = {"x": x_BLHd, "cos": cos, "sin": sin, "y": y_BLHd, "inverse": sums_BHL}
    _call(ATTEND, batch=B, length=L, heads=H3 // 3, width=d, epsilon=epsilon, **tensors)
    return y_BLHd, sums_BHL


def attend_grad(
    dy_BLHd: Tensor,
    x_BLHd: Tensor,
    cos: Tensor,
    *,
    sin: Tensor,
    y_BLHd: Tensor,
    sums_BHL: Tensor,
    epsilon: float,
) -> Tensor:
    """The gradient of x, (B, L, 3H, d).

    Example:
        >>> x, one = torch.ones(1, 1, 3, 2), torch.ones(1, 1)
        >>> if can_run(x):
        ...     y, sums = attend(x, one, 0 * one, epsilon=0.0)
        ...     dx = attend_grad(y, x, one, sin=0 * one, y_BLHd=y, sums_BHL=sums, epsilon=0.0)
        ...     assert dx.tolist() == [[[[0.0, 0.0], [0.0, 0.0], [1.0, 1.0]]]]
    """
    dy_BLHd, x_BLHd, (B, L, H, d) = dy_BLHd.contiguous(), x_BLHd.contiguous(), y_BLHd.shape
    dx_BLHd = torch.empty_like(x_BLHd)
    tensors = {"x": x_BLHd, "cos": cos, "sin": sin, "y": y_BLHd, "inverse": sums_BHL, "dy": dy_BLHd, "dx": dx_BLHd}
    _call(ATTEND_GRAD, batch=B, length=L, heads=H, width=d, epsilon=epsilon, **tensors)
    return dx_BLHd


def cross_entropy_(logits_NV: Tensor, target_N: Tensor, *, scale: float) -> Tensor:
    """The nats of each row, (N,); the logits become their gradients times `scale`, in place.

    Raises:
        UserError: a target outside the vocabulary.

    Example:
        >>> logits = torch.zeros(1, 2)
        >>> if can_run(logits):
        ...     nats = cross_entropy_(logits, torch.tensor([1]), scale=1.0)
        ...     assert logits.tolist() == [[0.5, -0.5]]
    """
    N, V = logits_NV.shape
    nats_N, target_N = logits_NV.new_empty(N), target_N.contiguous()
    if _call(CROSS_ENTROPY, length=N, width=V, scale=scale, y=logits_NV, target=target_N, inverse=nats_N):
        low, high = target_N.min().item(), target_N.max().item()
        raise UserError(f"expected targets from 0 to {V - 1}, got {low} to {high}")
    return nats_N
