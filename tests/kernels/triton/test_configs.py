"""The table of tile sizes and its reader."""

import pytest
import torch

from mixtura.kernels.triton.configs import HEIGHTS, TABLE, UNALIGNED, choose

ENTRIES = [*((size, entry) for (size, _), entry in TABLE.items()), *UNALIGNED.items()]


@pytest.mark.parametrize(("size", "entry"), ENTRIES)
def test_every_entry_is_whole_and_fits_shared_memory(size, entry):
    assert set(entry) == {"up", "up_gated", "rows", "hidden", "hidden_gated", "weights"}
    heights = {config.block_m for kind, config in entry.items() if kind != "weights"}
    assert len(heights) == 1  # one schedule serves every row kernel of a call
    for kind, config in entry.items():
        assert all(value & (value - 1) == 0 for value in (*config[:4], config.pieces))
        assert min(config[:3]) >= 16
        columns = config.block_n * (2 if kind == "up_gated" else 1)
        assert (config.block_m + columns) * config.block_k * size * config.num_stages <= 227 * 1024


def test_every_height_has_an_entry():
    assert {(size, height) for size, steps in HEIGHTS.items() for _, height in steps} == set(TABLE)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_more_rows_never_get_a_smaller_tile(dtype):
    heights = [choose(dtype, sizes=(64,), rows_per_expert=rows).height for rows in (0, 1, 30, 50, 100, 1e6)]
    assert heights == sorted(heights)
    assert heights[0] == 16
    assert heights[-1] == (64 if dtype is torch.float32 else 128)


def test_narrow_results_and_short_sums_get_narrow_tiles():
    tiles = choose(torch.bfloat16, sizes=(32, 48), rows_per_expert=1000)
    assert tiles.config("hidden", 48, 32)[:3] == (128, 64, 32)
    assert tiles.config("hidden", 48, 32).pieces == 4
    assert tiles.config("hidden", 20, 32).pieces == 2
    assert tiles.config("up_gated", 1, 1)[1:3] == (16, 16)
    assert tiles.config("weights", 20, 40)[:2] == (64, 32)


def test_odd_widths_get_small_tiles():
    assert choose(torch.float16, sizes=(64, 100), rows_per_expert=1000).height == 32
