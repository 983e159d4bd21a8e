"""Adding each token's rows by reading them, without atomics: runs repeat to the last bit.

Where every token has K choices, `slot_TK` says where they lie. Otherwise the rows are put in the order of their tokens
by a stable sort of the indices alone, and a token reads its stretch of that order. Compiled for compute capability 9.0
and run by the interpreter, but it has never met a GPU.
"""

from typing import Any

import torch
from torch import Tensor

from mixtura.kernels.rows import RowIndex
from mixtura.kernels.triton.configs import Config
from mixtura.kernels.triton.language import narrow, tl, triton
from mixtura.kernels.triton.launch import Launch

_TILE = 2048


@triton.jit
def slots_kernel(y_ND, slot_TK, out_TD, T, D, K, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Tokens by columns; a dropped choice, -1, adds nothing."""
    t = (tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    d = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for choice in range(K):
        slot = tl.load(slot_TK + t * K + choice, mask=t < T, other=-1)
        mask = (slot >= 0)[:, None] & (d < D)[None, :]
        acc += tl.load(y_ND + slot[:, None] * D + d[None, :], mask=mask, other=0.0).to(tl.float32)
    tl.store(
        out_TD + t[:, None] * D + d[None, :],
        narrow(acc, out_TD.dtype.element_ty),
        mask=(t < T)[:, None] & (d < D)[None, :],
    )


@triton.jit
def stretches_kernel(y_ND, order_N, begin_T, out_TD, D, BLOCK_N: tl.constexpr):
    """One token by columns; its rows are order_N[begin_T[t] : begin_T[t + 1]]."""
    t = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    acc = tl.zeros((BLOCK_N,), dtype=tl.float32)
    for place in range(tl.load(begin_T + t), tl.load(begin_T + t + 1)):
        row = tl.load(order_N + place)
        acc += tl.load(y_ND + row * D + d, mask=d < D, other=0.0).to(tl.float32)
    tl.store(out_TD + t * D + d, narrow(acc, out_TD.dtype.element_ty), mask=d < D)


def _stretches(index: RowIndex) -> tuple[Tensor, Tensor]:
    """The rows in the order of their tokens, and where each token's begin: (N,), (T + 1,). The tail comes last."""
    N, T = index.token_N.shape[0], index.num_tokens
    row_N = torch.arange(N, device=index.token_N.device)
    token_N = index.token_N.where(row_N < index.counts_E.sum(), T)
    sorted_N, order_N = token_N.sort(stable=True)
    return order_N, torch.searchsorted(sorted_N, torch.arange(T + 1, device=token_N.device))


def combine_launch(y_ND: Tensor, index: RowIndex) -> tuple[Tensor, Launch]:
    """The sum of each token's rows (T, D), and the kernel that writes it."""
    T, D = index.num_tokens, y_ND.shape[1]
    out_TD = y_ND.new_empty(T, D)
    block_n = min(triton.next_power_of_2(D), _TILE if index.slot_TK is None else 512)
    arguments: dict[str, Any] = {"y_ND": y_ND, "out_TD": out_TD, "D": D, "BLOCK_N": block_n}
    if index.slot_TK is None:
        kernel, block_m = stretches_kernel, 1
        order_N, begin_T = _stretches(index)
        arguments |= {"order_N": order_N, "begin_T": begin_T}
    else:
        kernel, block_m = slots_kernel, max(1, _TILE // block_n)
        arguments |= {"slot_TK": index.slot_TK, "T": T, "K": index.slot_TK.shape[1], "BLOCK_M": block_m}
    config = Config(block_m, block_n, 1, num_warps=4, num_stages=1)
    grid = (triton.cdiv(T, block_m), triton.cdiv(D, block_n))
    return out_TD, Launch(name="combine", kernel=kernel, grid=grid, arguments=arguments, config=config)


@torch.library.custom_op("mixtura::triton_combine", mutates_args=())
def _combine(y_ND: Tensor, token_N: Tensor, counts_E: Tensor, slot_TK: Tensor | None, num_tokens: int) -> Tensor:
    out_TD, launch = combine_launch(y_ND.contiguous(), RowIndex(token_N, counts_E, slot_TK, num_tokens, dropless=False))
    launch.run()
    return out_TD


@_combine.register_fake
def _(y_ND: Tensor, token_N: Tensor, counts_E: Tensor, slot_TK: Tensor | None, num_tokens: int) -> Tensor:  # noqa: ARG001  # a signature
    return y_ND.new_empty(num_tokens, y_ND.shape[1])


def sum_rows(y_ND: Tensor, index: RowIndex) -> Tensor:
    """`mixtura.kernels.rows.sum_rows` by one kernel: (N, D) -> (T, D). Not differentiable by itself.

    Example:
        >>> torch.ops.mixtura.triton_combine  # what torch.compile sees of it
        <OpOverloadPacket(op='mixtura.triton_combine')>
    """
    summed: Tensor = _combine(y_ND, index.token_N, index.counts_E, index.slot_TK, index.num_tokens)
    return summed
