"""The dense parts of a language model by the compiled library, where it takes the tensors; by torch elsewhere.

Both give the same results. The library makes one pass over memory where torch's composed operations make several: fp32
on a CPU, outside torch.compile and torch.func.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # torch's own customary name

from mixtura.errors import UserError
from mixtura.kernels import dense
from mixtura.kernels.ops import first_derivative_only

EPSILON = torch.finfo(torch.float32).eps  # what torch takes for fp32
MOST_LOGITS = 1 << 22  # held at a time, 16 MB
# Rows of a product from which on oneDNN is worth it: below, it saves less than it takes to meet a new shape.
LEAST_FOR_ONEDNN = 2048


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, weight_D: Tensor) -> Tensor:
        y_ND, inverse_N = dense.norm(x_ND, weight_D, epsilon=EPSILON)
        ctx.save_for_backward(x_ND, weight_D, inverse_N)
        return y_ND

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, dy_ND: Tensor) -> tuple[Tensor | None, ...]:
        x_ND, weight_D, inverse_N = ctx.saved_tensors
        return dense.norm_grad(dy_ND, x_ND, weight_D, inverse_N=inverse_N)


class RMSNorm(nn.RMSNorm):
    """`torch.nn.RMSNorm` over the last dimension, with its parameter and its result.

    Source: Zhang and Sennrich 2019, equation 4.

    Example:
        >>> RMSNorm(2)(torch.tensor([[3.0, 4.0]])).detach()
        tensor([[0.8485, 1.1314]])
    """

    def __init__(self, dim: int) -> None:
        super().__init__(dim)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        if not dense.can_run(x, self.weight):
            return super().forward(x)
        y: Tensor = _RMSNorm.apply(x.reshape(-1, x.shape[-1]), self.weight)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return y.view(x.shape)


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BLHd: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        y_BLHd, sums_BHL = dense.attend(x_BLHd, cos, sin, epsilon=EPSILON)
        ctx.save_for_backward(x_BLHd, cos, sin, y_BLHd, sums_BHL)
        return y_BLHd

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, dy_BLHd: Tensor) -> tuple[Tensor | None, ...]:
        x_BLHd, cos, sin, y_BLHd, sums_BHL = ctx.saved_tensors
        dx = dense.attend_grad(dy_BLHd, x_BLHd, cos, sin=sin, y_BLHd=y_BLHd, sums_BHL=sums_BHL, epsilon=EPSILON)
        return dx, None, None


def normalise_and_turn(x_BLHd: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Normalise each head's query or key, then turn it by its place's angles (rotary positions, Su et al. 2021).

    Args:
        x_BLHd: (B, L, H, d).
        cos: (L, d / 2) of the angles; a pair is an element of the first half and its fellow of the second.
        sin: the same.

    Example:
        >>> one = torch.ones(1, 1)
        >>> normalise_and_turn(torch.tensor([[[[3.0, 4.0]]]]), 0 * one, one)
        tensor([[[[-1.1314,  0.8485]]]])
    """
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    a, b = F.rms_norm(x_BLHd, x_BLHd.shape[-1:]).chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


def causal_attention(qkv_BLHd: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Each token attends to itself and those before it; queries and keys as in `normalise_and_turn`.

    Args:
        qkv_BLHd: (B, L, 3H, d): the heads' queries, keys, values.
        cos: (L, d / 2).
        sin: (L, d / 2).

    Returns:
        (B, L, H, d).

    Example:
        >>> causal_attention(torch.ones(1, 2, 3, 2), torch.ones(2, 1), torch.zeros(2, 1)).shape
        torch.Size([1, 2, 1, 2])
    """
    if dense.can_run(qkv_BLHd, cos, sin) and dense.can_attend(qkv_BLHd.shape[1], qkv_BLHd.shape[3]):
        y_BLHd: Tensor = _Attend.apply(qkv_BLHd, cos, sin)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return y_BLHd
    heads = qkv_BLHd.shape[2] // 3
    # Split rather than sliced: the gradient of a slice is a whole tensor of zeros around it.
    qk, v = qkv_BLHd.split([2 * heads, heads], dim=2)
    q, k = normalise_and_turn(qk, cos, sin).to(qk.dtype).chunk(2, dim=2)
    q, k, v = (part.transpose(1, 2) for part in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)


def _times_transposed(x_TD: Tensor, weight_VD: Tensor) -> Tensor:
    """`x weight^T`, (T, V), by oneDNN."""
    y_TV: Tensor = torch.ops.mkldnn._linear_pointwise(x_TD, weight_VD, None, "none", [], "")
    return y_TV


def _has_onednn() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


class _LinearCrossEntropy(torch.autograd.Function):
    """Both gradients are made on the way, chunk by chunk; backward scales them."""

    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, weight_VD: Tensor, target_T: Tensor) -> Tensor:
        T, rows = x_TD.shape[0], max(MOST_LOGITS // weight_VD.shape[0], 64)
        wanted, by_onednn = any(ctx.needs_input_grad), min(T, rows) >= LEAST_FOR_ONEDNN and _has_onednn()
        weight_DV = weight_VD.T.contiguous() if wanted and by_onednn else None
        nats, dx_TD, dweight_VD = x_TD.new_zeros(()), torch.empty_like(x_TD), torch.zeros_like(weight_VD)
        for start in range(0, T, rows):
            x = x_TD[start : start + rows]
            slope = _times_transposed(x, weight_VD) if by_onednn else x @ weight_VD.T
            nats += dense.cross_entropy_(slope, target_T[start : start + rows], scale=1 / T).sum()
            if wanted:
                dx = dx_TD[start : start + rows]
                if weight_DV is None:
                    torch.mm(slope, weight_VD, out=dx)
                else:
                    dx.copy_(_times_transposed(slope, weight_DV))
                dweight_VD.addmm_(slope.T, x)
        if wanted:
            ctx.save_for_backward(dx_TD, dweight_VD)
        return nats / T

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        dx_TD, dweight_VD = ctx.saved_tensors
        return dx_TD * grad, dweight_VD * grad, None


def linear_cross_entropy(x_TD: Tensor, head: nn.Linear, target_T: Tensor) -> Tensor:
    """The mean over tokens of -log softmax(head(x))[target]; the library never holds the logits of all tokens.

    Args:
        x_TD: (T, D) with at least one token.
        head: the output layer, D -> V; called where it is more than a matrix.
        target_T: int64 (T,), below V.

    Raises:
        UserError: no tokens, or targets of another shape or dtype.

    Example:
        >>> head = nn.Linear(3, 4, bias=False)
        >>> linear_cross_entropy(torch.zeros(2, 3), head, torch.tensor([0, 3])).detach()
        tensor(1.3863)
    """
    if not x_TD.shape[0]:
        raise UserError("expected at least one token to predict, got none")
    if target_T.shape != x_TD.shape[:1] or target_T.dtype is not torch.int64:
        raise UserError(
            f"expected targets of shape ({x_TD.shape[0]},) and int64, got {target_T.shape}, {target_T.dtype}"
        )
    is_matrix = type(head) is nn.Linear and head.bias is None
    if is_matrix and dense.can_run(x_TD, head.weight) and not torch.is_autocast_enabled("cpu"):
        loss: Tensor = _LinearCrossEntropy.apply(x_TD, head.weight, target_T)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return loss
    return F.cross_entropy(head(x_TD).float(), target_T)
