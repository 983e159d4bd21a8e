"""Launches as values."""

import torch

from mixtura.kernels.triton.configs import Config
from mixtura.kernels.triton.language import tl, triton
from mixtura.kernels.triton.launch import INTERPRETED_PROGRAMS, Launch, num_programs


@triton.jit
def count_kernel(out):
    tl.atomic_add(out, 1)


def test_a_launch_runs_its_grid_and_an_empty_one_nothing():
    out = torch.zeros(1, dtype=torch.int32)
    for grid in ((2, 3), (0,), (4, 0)):
        config = Config(16, 16, 16, 4, 1)
        Launch(name="count", kernel=count_kernel, grid=grid, arguments={"out": out}, config=config).run()
    assert out.item() == 6


def test_a_persistent_grid_is_never_larger_than_its_tiles_nor_empty():
    cpu = torch.device("cpu")
    large, small = Config(128, 128, 64, 8, 3), Config(32, 64, 64, 4, 3)
    assert [num_programs(cpu, tiles=tiles, config=large) for tiles in (0, 1, 100)] == [1, 1, INTERPRETED_PROGRAMS]
    assert num_programs(cpu, tiles=100, config=small) == 2 * INTERPRETED_PROGRAMS
