"""The backward pass on the hidden side: da = dY W_down, and in its epilogue all that follows from da and the kept z.

That is dz (times the row's weight), the weighted activation again for W_down's gradient, and the weight's own gradient
<da, a> + <dY, b_down>, so that no expert's output is ever kept. Each column tile writes its part of <da, a> into a
row of its own; they are added afterwards, in one order. Compiled for compute capability 9.0 and run by the
interpreter, but it has never met a GPU.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from mixtura.kernels.activations import ACTIVATIONS
from mixtura.kernels.triton.activations import activate, gated_backward, halve, slope
from mixtura.kernels.triton.configs import Config
from mixtura.kernels.triton.language import dot, narrow, tl, triton
from mixtura.kernels.triton.launch import Launch, num_programs
from mixtura.kernels.triton.schedule import Schedule


class Hidden(NamedTuple):
    """What the backward pass needs of the hidden side.

    Attributes:
        dz: (N, F or 2F), the gradient of the pre-activation.
        a_NF: (N, F), the activation times the row's weight.
        dweight_PN: float32 (P, N), P parts of each weight's gradient.
    """

    dz: Tensor
    a_NF: Tensor
    dweight_PN: Tensor


@triton.jit
def _finish(acc, weight_N, z, dz, a_NF, keep_NF, row, is_row, first, F, OPTIONS: tl.constexpr, PIECES: tl.constexpr):
    """Write dz and the activation of a tile that begins at column `first`, in pieces, and sum da * a by row."""
    ACTIVATION: tl.constexpr = OPTIONS[0]
    GATED: tl.constexpr = OPTIONS[1]
    HAS_KEEP: tl.constexpr = OPTIONS[2]
    if PIECES > 1:
        left, right = halve(acc)
        rest: tl.constexpr = PIECES // 2
        dweight = _finish(left, weight_N, z, dz, a_NF, keep_NF, row, is_row, first, F, OPTIONS, rest)
        first += acc.shape[1] // 2
        dweight += _finish(right, weight_N, z, dz, a_NF, keep_NF, row, is_row, first, F, OPTIONS, rest)
    else:
        f = first + tl.arange(0, acc.shape[1])
        mask = is_row[:, None] & (f < F)[None, :]
        weight = tl.load(weight_N + row, mask=is_row, other=0.0).to(tl.float32)[:, None]
        if HAS_KEEP:
            keep = tl.load(keep_NF + row[:, None] * F + f[None, :], mask=mask, other=0.0).to(tl.float32)
            acc *= keep
        if GATED:
            z_at = row[:, None] * (2 * F) + f[None, :]
            gate = tl.load(z + z_at, mask=mask, other=0.0).to(tl.float32)
            linear = tl.load(z + z_at + F, mask=mask, other=0.0).to(tl.float32)
            a, dgate, dlinear = gated_backward(acc, gate, linear, ACTIVATION)
            tl.store(dz + z_at, narrow(dgate * weight, dz.dtype.element_ty), mask=mask)
            tl.store(dz + z_at + F, narrow(dlinear * weight, dz.dtype.element_ty), mask=mask)
        else:
            z_at = row[:, None] * F + f[None, :]
            plain = tl.load(z + z_at, mask=mask, other=0.0).to(tl.float32)
            a = activate(plain, ACTIVATION)
            tl.store(dz + z_at, narrow(acc * slope(plain, ACTIVATION) * weight, dz.dtype.element_ty), mask=mask)
        dweight = tl.sum(acc * a, axis=1)
        if HAS_KEEP:
            a *= keep
        tl.store(a_NF + row[:, None] * F + f[None, :], narrow(a * weight, a_NF.dtype.element_ty), mask=mask)
    return dweight


@triton.jit
def hidden_kernel(
    dy_ND,
    weight_N,
    down,
    down_bias,
    z,
    dz,
    a_NF,
    keep_NF,
    dweight_PN,
    start_E,
    tiles,
    expert_M,
    row_M,
    N,
    D,
    F,
    ACTIVATION: tl.constexpr,
    GATED: tl.constexpr,
    HAS_KEEP: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    EVEN_D: tl.constexpr,
    EVEN_F: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PIECES: tl.constexpr,
):
    """Tiles of (BLOCK_M rows, BLOCK_N hidden columns), strided over a persistent grid."""
    columns = tl.cdiv(F, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    for tile in range(tl.program_id(0), tl.load(tiles) * columns, tl.num_programs(0)):
        m = tile // columns
        column = tile % columns
        e = tl.load(expert_M + m).to(tl.int64)
        first = tl.load(row_M + m).to(tl.int64)
        row = first + tl.arange(0, BLOCK_M)
        is_row = row < tl.load(start_E + e + 1)
        f = column * BLOCK_N + tl.arange(0, BLOCK_N)
        dy_ptr = dy_ND + tl.where(is_row, row, first)[:, None] * D + k[None, :]
        down_ptr = down + e * D * F + k[:, None] * F + f[None, :]
        acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
        for start in range(0, D, BLOCK_K):
            if EVEN_D:
                dy = tl.load(dy_ptr)
            else:
                dy = tl.load(dy_ptr, mask=(k < D - start)[None, :], other=0.0)
            if EVEN_D and EVEN_F:
                w = tl.load(down_ptr)
            else:
                w = tl.load(down_ptr, mask=(k < D - start)[:, None] & (f < F)[None, :], other=0.0)
            acc = dot(dy, w, acc)
            dy_ptr += BLOCK_K
            down_ptr += BLOCK_K * F
        OPTIONS: tl.constexpr = (ACTIVATION, GATED, HAS_KEEP)
        first_f = column * BLOCK_N
        dweight = _finish(acc, weight_N, z, dz, a_NF, keep_NF, row, is_row, first_f, F, OPTIONS, PIECES)
        if HAS_BIAS:
            # One tile of each row adds the output's bias; the others leave the loop out.
            dy_ptr = dy_ND + tl.where(is_row, row, first)[:, None] * D + k[None, :]
            for start in range(0, tl.where(column == 0, D, 0), BLOCK_K):
                dy = tl.load(dy_ptr + start, mask=(k < D - start)[None, :], other=0.0).to(tl.float32)
                b = tl.load(down_bias + e * D + start + k, mask=k < D - start, other=0.0).to(tl.float32)
                dweight += tl.sum(dy * b[None, :], axis=1)
        tl.store(dweight_PN + column.to(tl.int64) * N + row, dweight, mask=is_row)


def hidden_launch(
    dy_ND: Tensor,
    weight_N: Tensor,
    down: Tensor,
    *,
    down_bias: Tensor | None,
    z: Tensor,
    keep_NF: Tensor | None,
    activation: str,
    schedule: Schedule,
    config: Config,
) -> tuple[Hidden, Launch]:
    """The hidden side's gradients, still to be written, and the kernel that writes them."""
    (N, D), F = dy_ND.shape, down.shape[2]
    parts = triton.cdiv(F, config.block_n)
    # Zeros, since no tile writes the tail's weights.
    dweight_PN = torch.zeros(parts, N, dtype=torch.float32, device=dy_ND.device)
    hidden = Hidden(torch.empty_like(z), z.new_empty(N, F), dweight_PN)
    arguments: dict[str, Any] = {
        "dy_ND": dy_ND,
        "weight_N": weight_N,
        "down": down,
        "down_bias": down_bias,
        "z": z,
        "keep_NF": keep_NF,
        **hidden._asdict(),
        **schedule.arguments(),
        "N": N,
        "D": D,
        "F": F,
        "ACTIVATION": activation,
        "GATED": ACTIVATIONS[activation].gated,
        "HAS_KEEP": keep_NF is not None,
        "HAS_BIAS": down_bias is not None,
        "EVEN_D": D % config.block_k == 0,
        "EVEN_F": F % config.block_n == 0,
        **config.blocks(),
        "PIECES": config.pieces,
    }
    grid = (num_programs(dy_ND.device, tiles=schedule.row_M.shape[0] * parts, config=config),)
    return hidden, Launch(name="hidden", kernel=hidden_kernel, grid=grid, arguments=arguments, config=config)
