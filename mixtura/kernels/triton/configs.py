"""Tile sizes by kernel, dtype and rows per expert: a table and a pure function that reads it.

The entries were chosen by what compiles for sm_90 without spilling registers, not by measured time: no GPU was to be
had. `python -m benchmarks.kernels --compile-only` prints what each needs; on a GPU the same command times them.
"""

from typing import Literal, NamedTuple

import torch

Kind = Literal["up", "up_gated", "rows", "hidden", "hidden_gated", "weights"]


class Config(NamedTuple):
    """One way to compile a kernel.

    Attributes:
        block_m: rows of a tile of the result (for "weights": rows of the matrix).
        block_n: its columns; a gated kernel computes as many again, of the gate.
        block_k: how much of the sum one step takes.
        num_warps: warps of 32 threads that share the tile.
        num_stages: steps whose operands lie in shared memory at once.
        pieces: parts in which the epilogue works through the tile's columns, so that fewer values are alive at once.

    Example:
        >>> Config(128, 128, 64, num_warps=8, num_stages=3).options()
        {'num_warps': 8, 'num_stages': 3, 'enable_fp_fusion': True}
    """

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int
    pieces: int = 1

    def blocks(self) -> dict[str, int]:
        """The tile sizes as the kernels' parameters."""
        return {"BLOCK_M": self.block_m, "BLOCK_N": self.block_n, "BLOCK_K": self.block_k}

    def options(self) -> dict[str, int]:
        """What the compiler takes beside them."""
        return {"num_warps": self.num_warps, "num_stages": self.num_stages, "enable_fp_fusion": True}


# Tile heights of all row kernels of one call, with the rows per expert from which each is taken.
HEIGHTS = {2: ((96, 128), (48, 64), (24, 32), (0, 16)), 4: ((48, 64), (24, 32), (0, 16))}
_SMALLEST = 16  # of a side of a tile that tl.dot takes
_NARROWEST_PIECE = 16
# Widths that are no multiple of this are read element by element, which takes many registers: small tiles.
_ALIGNMENT = 16

Entry = dict[Kind, Config]

# By bytes of an element and height; one more, UNALIGNED, where a width is odd.
TABLE: dict[tuple[int, int], Entry] = {
    (2, 128): {
        "up": Config(128, 256, 64, 8, 4, 8),
        "up_gated": Config(128, 128, 64, 8, 4, 4),
        "rows": Config(128, 256, 64, 8, 4),
        "hidden": Config(128, 128, 64, 8, 4, 4),
        "hidden_gated": Config(128, 128, 64, 8, 4, 8),
        "weights": Config(128, 256, 64, 8, 4),
    },
    (2, 64): {
        "up": Config(64, 128, 64, 4, 4, 2),
        "up_gated": Config(64, 64, 64, 4, 4, 2),
        "rows": Config(64, 128, 64, 4, 4),
        "hidden": Config(64, 128, 64, 4, 4, 4),
        "hidden_gated": Config(64, 64, 64, 4, 4, 2),
        "weights": Config(128, 256, 64, 8, 4),
    },
    (2, 32): {
        "up": Config(32, 128, 64, 4, 4, 2),
        "up_gated": Config(32, 64, 64, 4, 4, 2),
        "rows": Config(32, 128, 64, 4, 4),
        "hidden": Config(32, 128, 64, 4, 4, 4),
        "hidden_gated": Config(32, 64, 64, 4, 4, 2),
        "weights": Config(128, 128, 32, 4, 4),
    },
    (2, 16): {
        "up": Config(16, 128, 128, 4, 4, 2),
        "up_gated": Config(16, 64, 128, 4, 4, 2),
        "rows": Config(16, 128, 128, 4, 4),
        "hidden": Config(16, 128, 64, 4, 4, 2),
        "hidden_gated": Config(16, 64, 64, 4, 4, 2),
        "weights": Config(128, 128, 16, 4, 4),
    },
    (4, 64): {
        "up": Config(64, 64, 16, 8, 3),
        "up_gated": Config(64, 64, 16, 8, 3),
        "rows": Config(64, 64, 16, 8, 3),
        "hidden": Config(64, 64, 16, 8, 3),
        "hidden_gated": Config(64, 64, 16, 8, 3),
        "weights": Config(128, 64, 16, 8, 3),
    },
    (4, 32): {
        "up": Config(32, 64, 16, 4, 3),
        "up_gated": Config(32, 64, 16, 8, 3),
        "rows": Config(32, 64, 16, 4, 3),
        "hidden": Config(32, 64, 16, 4, 3),
        "hidden_gated": Config(32, 64, 16, 4, 3),
        "weights": Config(64, 64, 16, 4, 3),
    },
    (4, 16): {
        "up": Config(16, 64, 16, 4, 3),
        "up_gated": Config(16, 32, 16, 4, 3),
        "rows": Config(16, 64, 16, 4, 3),
        "hidden": Config(16, 64, 16, 4, 3),
        "hidden_gated": Config(16, 64, 16, 4, 3),
        "weights": Config(64, 64, 16, 4, 3),
    },
}
UNALIGNED: dict[int, Entry] = {
    2: {
        "up": Config(32, 64, 32, 4, 3, 2),
        "up_gated": Config(32, 64, 32, 4, 3, 2),
        "rows": Config(32, 64, 32, 4, 3),
        "hidden": Config(32, 64, 32, 4, 3, 2),
        "hidden_gated": Config(32, 64, 32, 4, 3, 2),
        "weights": Config(64, 64, 32, 4, 3),
    },
    4: {
        "up": Config(32, 64, 16, 8, 3),
        "up_gated": Config(32, 64, 16, 8, 3),
        "rows": Config(32, 64, 16, 8, 3),
        "hidden": Config(32, 64, 16, 8, 3),
        "hidden_gated": Config(32, 64, 16, 8, 3),
        "weights": Config(64, 64, 16, 8, 3),
    },
}


class Tiles(NamedTuple):
    """The part of the table that one call uses.

    Attributes:
        height: rows of a tile of every row kernel.
        entry: the configurations.

    Example:
        >>> choose(torch.bfloat16, sizes=(2048, 1024), rows_per_expert=4096).height
        128
        >>> choose(torch.bfloat16, sizes=(2048, 1024), rows_per_expert=2).height
        16
    """

    height: int
    entry: Entry

    def config(self, kind: Kind, columns: int, terms: int) -> Config:
        """A configuration, cut to the smallest tile that holds the whole of a narrow result or of a short sum.

        Args:
            kind: which kernel.
            columns: of the result.
            terms: of the sum; for "weights" rows of the result.

        Example:
            >>> tiles = choose(torch.float16, sizes=(96, 32), rows_per_expert=4096)
            >>> tiles.config("rows", 96, 32)
            Config(block_m=128, block_n=128, block_k=32, num_warps=8, num_stages=4, pieces=1)
        """
        config = self.entry[kind]
        block_n = _cut(config.block_n, columns)
        pieces = max(1, min(config.pieces, block_n // _NARROWEST_PIECE))
        if kind == "weights":
            return config._replace(block_m=_cut(config.block_m, terms), block_n=block_n)
        return config._replace(block_n=block_n, block_k=_cut(config.block_k, terms), pieces=pieces)


def choose(dtype: torch.dtype, *, sizes: tuple[int, ...], rows_per_expert: float) -> Tiles:
    """Large tiles where experts have many rows, small ones where most of a large tile would be empty.

    Args:
        dtype: of the operands; float32 is computed in float32, which tensor cores cannot, so its tiles are small.
        sizes: every width of a matrix.
        rows_per_expert: N / E.

    Example:
        >>> choose(torch.bfloat16, sizes=(100, 100), rows_per_expert=4096).entry["rows"].block_n
        64
    """
    if any(size % _ALIGNMENT for size in sizes):
        entry = UNALIGNED[dtype.itemsize]
        return Tiles(entry["rows"].block_m, entry)
    height = next(height for least, height in HEIGHTS[dtype.itemsize] if rows_per_expert >= least)
    return Tiles(height, TABLE[dtype.itemsize, height])


def _cut(block: int, size: int) -> int:
    return max(_SMALLEST, min(block, 1 << (size - 1).bit_length()))
