"""Which tile belongs to whom."""

import pytest
import torch

from mixtura.kernels.triton.schedule import max_tiles, schedule_launch

CASES = {
    "even": ([16, 16, 16], 48),
    "first empty": ([0, 17, 3], 20),
    "middle empty": ([5, 0, 40], 45),
    "last empty": ([5, 40, 0], 45),
    "all empty": ([0, 0, 0], 0),
    "all in the tail": ([0, 0], 33),
    "tail": ([3, 20], 60),
    "one expert with more tiles than a block of the loop": ([16 * 70], 16 * 70),
}


@pytest.mark.parametrize(("counts", "num_rows"), CASES.values(), ids=list(CASES))
@pytest.mark.usefixtures("poison")
def test_tiles_cover_every_row_once_in_its_experts_order(counts, num_rows):
    schedule, launch = schedule_launch(torch.tensor(counts), num_rows=num_rows, height=16)
    launch.run()
    E, edges = len(counts), [sum(counts[:e]) for e in range(len(counts) + 1)] + [num_rows]
    assert schedule.start_E.tolist() == edges
    real, with_tail = schedule.tiles.tolist()
    experts, rows = schedule.expert_M[:with_tail].tolist(), schedule.row_M[:with_tail].tolist()
    expected = [(e, row) for e in range(E + 1) for row in range(edges[e], edges[e + 1], 16)]
    assert list(zip(experts, rows, strict=True)) == expected
    assert real == sum(expert < E for expert in experts)
    assert with_tail <= max_tiles(num_rows, num_experts=E, height=16) == schedule.row_M.shape[0]
