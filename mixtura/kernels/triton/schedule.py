"""Which tile of rows belongs to which expert, found on the device: no count ever travels to the host.

How many tiles there are depends on the counts, how many there can be does not: ceil(N / height) + E + 1. The tables
have room for all of them, and programs of a persistent grid stop at the number that one kernel here writes beside them.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from mixtura.kernels.triton.configs import Config
from mixtura.kernels.triton.language import tl, triton
from mixtura.kernels.triton.launch import Launch

_BLOCK = 64


class Schedule(NamedTuple):
    """Tiles of `height` rows, expert by expert; those of the tail, which belongs to no expert, come last.

    Attributes:
        start_E: int32 (E + 2,), the first row of each expert, then of the tail, then N.
        tiles: int32 (2,), how many tiles the experts have, and how many with the tail.
        expert_M: int32, the expert of each tile; E: the tail.
        row_M: int32, the first row of each tile.
        height: rows of a tile.
    """

    start_E: Tensor
    tiles: Tensor
    expert_M: Tensor
    row_M: Tensor
    height: int

    def arguments(self) -> dict[str, Tensor]:
        """The tables as the parameters of a kernel that walks over tiles."""
        return {"start_E": self.start_E, "tiles": self.tiles, "expert_M": self.expert_M, "row_M": self.row_M}


@triton.jit
def schedule_kernel(
    counts_E,
    start_E,
    tiles,
    expert_M,
    row_M,
    E,
    N,
    HEIGHT: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program for each expert and one for the tail: every tile of its own."""
    e = tl.program_id(0)
    i = tl.arange(0, BLOCK_E)
    counts = tl.load(counts_E + i, mask=i < E, other=0).to(tl.int32)
    first = tl.sum(tl.where(i < e, counts, 0))
    mine = tl.sum(tl.where(i == e, counts, 0))
    if e == E:
        mine = N - first
        tl.store(start_E + E + 1, N)
    before = tl.sum(tl.where(i < e, tl.cdiv(counts, HEIGHT), 0))
    num_mine = tl.cdiv(mine, HEIGHT)
    tl.store(start_E + e, first)
    if e == E:
        tl.store(tiles, before)
        tl.store(tiles + 1, before + num_mine)
    for j in range(0, num_mine, BLOCK):
        place = j + tl.arange(0, BLOCK)
        tl.store(expert_M + before + place, e, mask=place < num_mine)
        tl.store(row_M + before + place, first + place * HEIGHT, mask=place < num_mine)


def max_tiles(num_rows: int, *, num_experts: int, height: int) -> int:
    """How many tiles N rows of E experts and a tail can need: every group may end with a tile of one row.

    Example:
        >>> max_tiles(100, num_experts=4, height=16)
        12
    """
    return -(-num_rows // height) + num_experts + 1


def schedule_launch(counts_E: Tensor, *, num_rows: int, height: int) -> tuple[Schedule, Launch]:
    """The tables, still to be written, and the kernel that writes them."""
    E = counts_E.shape[0]

    def table(size: int) -> Tensor:
        return torch.empty(size, dtype=torch.int32, device=counts_E.device)

    most = max_tiles(num_rows, num_experts=E, height=height)
    schedule = Schedule(table(E + 2), table(2), table(most), table(most), height)
    arguments = {
        "counts_E": counts_E,
        **schedule.arguments(),
        "E": E,
        "N": num_rows,
        "HEIGHT": height,
        "BLOCK_E": triton.next_power_of_2(E),
        "BLOCK": _BLOCK,
    }
    config = Config(_BLOCK, 1, 1, num_warps=4, num_stages=1)
    return schedule, Launch(name="schedule", kernel=schedule_kernel, grid=(E + 1,), arguments=arguments, config=config)
