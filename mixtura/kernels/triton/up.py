"""The up product: x W_up^T + b for every expert's rows, with the activation and the row's weight in its epilogue.

Rows of x are read through `token_N` inside the product's loads; no gathered copy exists. A gated activation computes
its gate and up columns side by side from the same rows. Compiled for compute capability 9.0 and run by the
interpreter, but it has never met a GPU.
"""

from typing import Any

from torch import Tensor

from mixtura.kernels.activations import ACTIVATIONS
from mixtura.kernels.triton.activations import activate, gated_forward, halve
from mixtura.kernels.triton.configs import Config
from mixtura.kernels.triton.language import dot, narrow, tl, triton
from mixtura.kernels.triton.launch import Launch, num_programs
from mixtura.kernels.triton.schedule import Schedule


@triton.jit
def _finish(
    acc,
    acc_up,
    weight_N,
    bias,
    bias_at,
    z,
    a_NF,
    keep_NF,
    row,
    is_row,
    first,
    F,
    OPTIONS: tl.constexpr,
    PIECES: tl.constexpr,
):
    """Write z and the weighted activation of a tile that begins at column `first`, in pieces."""
    ACTIVATION: tl.constexpr = OPTIONS[0]
    GATED: tl.constexpr = OPTIONS[1]
    HAS_KEEP: tl.constexpr = OPTIONS[2]
    HAS_BIAS: tl.constexpr = OPTIONS[3]
    KEEP_Z: tl.constexpr = OPTIONS[4]
    if PIECES > 1:
        left, right = halve(acc)
        left_up, right_up = halve(acc_up)
        rest: tl.constexpr = PIECES // 2
        _finish(left, left_up, weight_N, bias, bias_at, z, a_NF, keep_NF, row, is_row, first, F, OPTIONS, rest)
        first += acc.shape[1] // 2
        _finish(right, right_up, weight_N, bias, bias_at, z, a_NF, keep_NF, row, is_row, first, F, OPTIONS, rest)
    else:
        f = first + tl.arange(0, acc.shape[1])
        mask = is_row[:, None] & (f < F)[None, :]
        if HAS_BIAS:
            acc += tl.load(bias + bias_at + f, mask=f < F, other=0.0).to(tl.float32)[None, :]
            if GATED:
                acc_up += tl.load(bias + bias_at + F + f, mask=f < F, other=0.0).to(tl.float32)[None, :]
        if KEEP_Z:
            z_ptr = z + row[:, None] * (2 * F if GATED else F) + f[None, :]
            tl.store(z_ptr, narrow(acc, z.dtype.element_ty), mask=mask)
            if GATED:
                tl.store(z_ptr + F, narrow(acc_up, z.dtype.element_ty), mask=mask)
        if GATED:
            a = gated_forward(acc, acc_up, ACTIVATION)
        else:
            a = activate(acc, ACTIVATION)
        if HAS_KEEP:
            a *= tl.load(keep_NF + row[:, None] * F + f[None, :], mask=mask, other=0.0).to(tl.float32)
        a = a * tl.load(weight_N + row, mask=is_row, other=0.0).to(tl.float32)[:, None]
        tl.store(a_NF + row[:, None] * F + f[None, :], narrow(a, a_NF.dtype.element_ty), mask=mask)


@triton.jit
def up_kernel(
    x_TD,
    token_N,
    weight_N,
    up,
    bias,
    z,
    a_NF,
    keep_NF,
    start_E,
    tiles,
    expert_M,
    row_M,
    D,
    F,
    ACTIVATION: tl.constexpr,
    GATED: tl.constexpr,
    HAS_KEEP: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    KEEP_Z: tl.constexpr,
    EVEN_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PIECES: tl.constexpr,
):
    """Tiles of (BLOCK_M rows, BLOCK_N hidden columns), strided over a persistent grid."""
    columns = tl.cdiv(F, BLOCK_N)
    width = 2 * F if GATED else F
    k = tl.arange(0, BLOCK_K)
    for tile in range(tl.program_id(0), tl.load(tiles) * columns, tl.num_programs(0)):
        m = tile // columns
        e = tl.load(expert_M + m).to(tl.int64)
        row = tl.load(row_M + m) + tl.arange(0, BLOCK_M)
        is_row = row < tl.load(start_E + e + 1)
        f = (tile % columns) * BLOCK_N + tl.arange(0, BLOCK_N)
        is_f = f < F
        # Rows and columns past the end read the first one instead: what they give is never stored.
        token = tl.load(token_N + row, mask=is_row, other=0)
        x_ptr = x_TD + token[:, None] * D + k[None, :]
        up_ptr = up + e * width * D + tl.where(is_f, f, 0)[None, :] * D + k[:, None]
        acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
        acc_up = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
        for start in range(0, D, BLOCK_K):
            if EVEN_K:
                x = tl.load(x_ptr)
                w = tl.load(up_ptr)
            else:
                x = tl.load(x_ptr, mask=(k < D - start)[None, :], other=0.0)
                w = tl.load(up_ptr, mask=(k < D - start)[:, None], other=0.0)
            acc = dot(x, w, acc)
            if GATED:
                if EVEN_K:
                    w = tl.load(up_ptr + F * D)
                else:
                    w = tl.load(up_ptr + F * D, mask=(k < D - start)[:, None], other=0.0)
                acc_up = dot(x, w, acc_up)
            x_ptr += BLOCK_K
            up_ptr += BLOCK_K
        OPTIONS: tl.constexpr = (ACTIVATION, GATED, HAS_KEEP, HAS_BIAS, KEEP_Z)
        first = (tile % columns) * BLOCK_N
        _finish(
            acc,
            acc_up,
            weight_N,
            bias,
            e * width,
            z,
            a_NF,
            keep_NF,
            row.to(tl.int64),
            is_row,
            first,
            F,
            OPTIONS,
            PIECES,
        )


def up_launch(
    x_TD: Tensor,
    weight_N: Tensor,
    up: Tensor,
    *,
    token_N: Tensor,
    bias: Tensor | None,
    keep_NF: Tensor | None,
    activation: str,
    keep_z: bool,
    schedule: Schedule,
    config: Config,
) -> tuple[Tensor, Tensor, Launch]:
    """The weighted activation (N, F), the pre-activation z (N, F or 2F) or (0, *) if not kept, and the kernel."""
    N, D, gated = token_N.shape[0], x_TD.shape[1], ACTIVATIONS[activation].gated
    width = up.shape[1]
    F = width // 2 if gated else width
    z = x_TD.new_empty(N if keep_z else 0, width)
    a_NF = x_TD.new_empty(N, F)
    arguments: dict[str, Any] = {
        "x_TD": x_TD,
        "token_N": token_N,
        "weight_N": weight_N,
        "up": up,
        "bias": bias,
        "z": z,
        "a_NF": a_NF,
        "keep_NF": keep_NF,
        **schedule.arguments(),
        "D": D,
        "F": F,
        "ACTIVATION": activation,
        "GATED": gated,
        "HAS_KEEP": keep_NF is not None,
        "HAS_BIAS": bias is not None,
        "KEEP_Z": keep_z,
        "EVEN_K": D % config.block_k == 0,
        **config.blocks(),
        "PIECES": config.pieces,
    }
    tiles = schedule.row_M.shape[0] * triton.cdiv(F, config.block_n)
    grid = (num_programs(x_TD.device, tiles=tiles, config=config),)
    return a_NF, z, Launch(name="up", kernel=up_kernel, grid=grid, arguments=arguments, config=config)
