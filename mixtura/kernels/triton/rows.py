"""Grouped products of rows that lie in order: the down product of the forward pass, and dz W_up of the backward pass.

A row reads its expert's matrix; each result row is written once. The tail of rows that belong to no expert gets zeros.
Compiled for compute capability 9.0 and run by the interpreter, but it has never met a GPU.
"""

from typing import Any

from torch import Tensor

from mixtura.kernels.triton.configs import Config
from mixtura.kernels.triton.language import dot, narrow, tl, triton
from mixtura.kernels.triton.launch import Launch, num_programs
from mixtura.kernels.triton.schedule import Schedule


@triton.jit
def rows_kernel(
    rows_NX,
    weight_N,
    matrix,
    bias,
    out_NY,
    start_E,
    tiles,
    expert_M,
    row_M,
    E,
    X,
    Y,
    TRANSPOSED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    EVEN_X: tl.constexpr,
    EVEN_Y: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Tiles of (BLOCK_M rows, BLOCK_N columns), strided over a persistent grid; matrix (E, X, Y) or (E, Y, X)."""
    columns = tl.cdiv(Y, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    for tile in range(tl.program_id(0), tl.load(tiles + 1) * columns, tl.num_programs(0)):
        m = tile // columns
        e = tl.load(expert_M + m).to(tl.int64)
        first = tl.load(row_M + m).to(tl.int64)
        row = first + tl.arange(0, BLOCK_M)
        end = tl.load(start_E + e + 1)
        is_row = row < end
        y = (tile % columns) * BLOCK_N + tl.arange(0, BLOCK_N)
        is_y = y < Y
        row_ptr = rows_NX + tl.where(is_row, row, first)[:, None] * X + k[None, :]
        if TRANSPOSED:
            matrix_ptr = matrix + e * X * Y + tl.where(is_y, y, 0)[None, :] * X + k[:, None]
        else:
            matrix_ptr = matrix + e * X * Y + k[:, None] * Y + y[None, :]
        acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
        # The tail has no matrix: its sum has no terms.
        for start in range(0, tl.where(e < E, X, 0), BLOCK_K):
            if EVEN_X:
                r = tl.load(row_ptr)
            else:
                r = tl.load(row_ptr, mask=(k < X - start)[None, :], other=0.0)
            if EVEN_X and (TRANSPOSED or EVEN_Y):
                w = tl.load(matrix_ptr)
            else:
                w = tl.load(matrix_ptr, mask=(k < X - start)[:, None] & is_y[None, :], other=0.0)
            acc = dot(r, w, acc)
            row_ptr += BLOCK_K
            matrix_ptr += BLOCK_K if TRANSPOSED else BLOCK_K * Y
        if HAS_BIAS:
            # Nothing of the tail is read: its weights may be NaN.
            b = tl.load(bias + e * Y + y, mask=y < tl.where(e < E, Y, 0), other=0.0).to(tl.float32)
            weight = tl.load(weight_N + row, mask=row < tl.where(e < E, end, 0), other=0.0).to(tl.float32)
            acc += weight[:, None] * b[None, :]
        out_ptr = out_NY + row[:, None] * Y + y[None, :]
        tl.store(out_ptr, narrow(acc, out_NY.dtype.element_ty), mask=is_row[:, None] & is_y[None, :])


def rows_launch(
    rows_NX: Tensor,
    matrix: Tensor,
    *,
    transposed: bool,
    weight_N: Tensor | None = None,
    bias: Tensor | None = None,
    schedule: Schedule,
    config: Config,
) -> tuple[Tensor, Launch]:
    """The product (N, Y) of each row with its expert's matrix, (E, X, Y) or, transposed, (E, Y, X), and the kernel.

    A bias (E, Y) is added, times the row's weight.
    """
    N, X = rows_NX.shape
    Y = matrix.shape[1 if transposed else 2]
    out_NY = rows_NX.new_empty(N, Y)
    arguments: dict[str, Any] = {
        "rows_NX": rows_NX,
        "weight_N": weight_N,
        "matrix": matrix,
        "bias": bias,
        "out_NY": out_NY,
        **schedule.arguments(),
        "E": matrix.shape[0],
        "X": X,
        "Y": Y,
        "TRANSPOSED": transposed,
        "HAS_BIAS": bias is not None,
        "EVEN_X": X % config.block_k == 0,
        "EVEN_Y": Y % config.block_n == 0,
        **config.blocks(),
    }
    tiles = schedule.row_M.shape[0] * triton.cdiv(Y, config.block_n)
    grid = (num_programs(rows_NX.device, tiles=tiles, config=config),)
    name = "down" if transposed else "dx rows"
    return out_NY, Launch(name=name, kernel=rows_kernel, grid=grid, arguments=arguments, config=config)
