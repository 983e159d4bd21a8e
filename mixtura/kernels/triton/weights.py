"""Gradients of the stacked matrices and biases: each expert's sum over its own rows, written once, zeros without rows.

The right side may be read through indices, so that the tokens' rows are not copied for W_up's gradient. Compiled for
compute capability 9.0 and run by the interpreter, but it has never met a GPU.
"""

from typing import Any

from torch import Tensor

from mixtura.kernels.triton.configs import Config
from mixtura.kernels.triton.language import dot, narrow, tl, triton
from mixtura.kernels.triton.launch import Launch, num_programs
from mixtura.kernels.triton.schedule import Schedule

_SUMS = Config(64, 64, 1, num_warps=4, num_stages=2)


@triton.jit
def weights_kernel(
    left_NX,
    right_NY,
    token_N,
    out,
    start_E,
    E,
    X,
    Y,
    GATHER: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Tiles of (BLOCK_M, BLOCK_N) of one expert's matrix, strided over a persistent grid; sums over its rows."""
    columns = tl.cdiv(Y, BLOCK_N)
    per_expert = tl.cdiv(X, BLOCK_M) * columns
    k = tl.arange(0, BLOCK_K)
    for tile in range(tl.program_id(0), E * per_expert, tl.num_programs(0)):
        e = tile // per_expert
        x = (tile % per_expert) // columns * BLOCK_M + tl.arange(0, BLOCK_M)
        y = (tile % columns) * BLOCK_N + tl.arange(0, BLOCK_N)
        end = tl.load(start_E + e + 1)
        acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
        for start in range(tl.load(start_E + e), end, BLOCK_K):
            row = start + k
            is_row = row < end
            source = row.to(tl.int64)
            # Both sides are masked: zero times a NaN of a foreign row would be one.
            left = tl.load(
                left_NX + source[:, None] * X + x[None, :], mask=is_row[:, None] & (x < X)[None, :], other=0.0
            )
            if GATHER:
                source = tl.load(token_N + row, mask=is_row, other=0)
            right = tl.load(
                right_NY + source[:, None] * Y + y[None, :], mask=is_row[:, None] & (y < Y)[None, :], other=0.0
            )
            acc = dot(tl.trans(left), right, acc)
        out_ptr = out + e.to(tl.int64) * X * Y + x[:, None] * Y + y[None, :]
        tl.store(out_ptr, narrow(acc, out.dtype.element_ty), mask=(x < X)[:, None] & (y < Y)[None, :])


def weights_launch(
    left_NX: Tensor, right_NY: Tensor, *, token_N: Tensor | None = None, schedule: Schedule, config: Config
) -> tuple[Tensor, Launch]:
    """Each expert's sum of outer products (E, X, Y) of its rows, and the kernel.

    With `token_N` the right rows are right_NY[token_N[n]], so its first dimension is T.
    """
    E, X, Y = schedule.start_E.shape[0] - 2, left_NX.shape[1], right_NY.shape[1]
    out = left_NX.new_empty(E, X, Y)
    arguments: dict[str, Any] = {
        "left_NX": left_NX,
        "right_NY": right_NY,
        "token_N": token_N,
        "out": out,
        "start_E": schedule.start_E,
        "E": E,
        "X": X,
        "Y": Y,
        "GATHER": token_N is not None,
        **config.blocks(),
    }
    tiles = E * triton.cdiv(X, config.block_m) * triton.cdiv(Y, config.block_n)
    grid = (num_programs(left_NX.device, tiles=tiles, config=config),)
    name = "dw down" if token_N is None else "dw up"
    return out, Launch(name=name, kernel=weights_kernel, grid=grid, arguments=arguments, config=config)


@triton.jit
def sums_kernel(
    rows_NX,
    weight_N,
    out,
    start_E,
    X,
    HAS_WEIGHT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """One program for each expert and block of columns."""
    e = tl.program_id(0)
    x = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    end = tl.load(start_E + e + 1)
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for start in range(tl.load(start_E + e), end, BLOCK_M):
        row = (start + tl.arange(0, BLOCK_M)).to(tl.int64)
        mask = (row < end)[:, None] & (x < X)[None, :]
        rows = tl.load(rows_NX + row[:, None] * X + x[None, :], mask=mask, other=0.0).to(tl.float32)
        if HAS_WEIGHT:
            rows *= tl.load(weight_N + row, mask=row < end, other=0.0).to(tl.float32)[:, None]
        acc += rows
    tl.store(out + e.to(tl.int64) * X + x, narrow(tl.sum(acc, axis=0), out.dtype.element_ty), mask=x < X)


def sums_launch(rows_NX: Tensor, *, weight_N: Tensor | None, schedule: Schedule) -> tuple[Tensor, Launch]:
    """Each expert's sum (E, X) of its rows, times their weights where given: a bias's gradient; and the kernel."""
    E, X = schedule.start_E.shape[0] - 2, rows_NX.shape[1]
    out = rows_NX.new_empty(E, X)
    arguments: dict[str, Any] = {
        "rows_NX": rows_NX,
        "weight_N": weight_N,
        "out": out,
        "start_E": schedule.start_E,
        "X": X,
        "HAS_WEIGHT": weight_N is not None,
        "BLOCK_M": _SUMS.block_m,
        "BLOCK_N": _SUMS.block_n,
    }
    grid = (E, triton.cdiv(X, _SUMS.block_n))
    return out, Launch(name="bias sums", kernel=sums_kernel, grid=grid, arguments=arguments, config=_SUMS)
