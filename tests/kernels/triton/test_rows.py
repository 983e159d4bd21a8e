"""Grouped products of rows in order, against plain torch."""

import pytest
import torch

from mixtura.kernels.triton.configs import Config
from mixtura.kernels.triton.rows import rows_launch
from mixtura.kernels.triton.schedule import schedule_launch

COUNTS, TAIL = (20, 0, 3), 18


@pytest.mark.parametrize("transposed", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("X", "Y"), [(32, 16), (20, 24)])
@pytest.mark.usefixtures("poison")
def test_each_row_times_its_experts_matrix_and_zeros_in_the_tail(transposed, bias, X, Y):
    N = sum(COUNTS) + TAIL
    rows_NX, weight_N = torch.randn(N, X), torch.rand(N)
    rows_NX[23:] = weight_N[23:] = torch.nan  # a tail's rows are never read
    matrix = torch.randn(3, Y, X) if transposed else torch.randn(3, X, Y)
    bias_EY = torch.randn(3, Y) if bias else None
    schedule, launch = schedule_launch(torch.tensor(COUNTS), num_rows=N, height=16)
    launch.run()
    config = Config(16, 16, 16, 4, 2)
    out_NY, launch = rows_launch(
        rows_NX, matrix, transposed=transposed, weight_N=weight_N, bias=bias_EY, schedule=schedule, config=config
    )
    launch.run()
    expert_N = torch.tensor([0] * 20 + [2] * 3)
    equation = "nx,nyx->ny" if transposed else "nx,nxy->ny"
    expected = torch.einsum(equation, rows_NX[:23], matrix[expert_N])
    if bias:
        expected += weight_N[:23, None] * bias_EY[expert_N]
    torch.testing.assert_close(out_NY[:23], expected)
    assert out_NY[23:].eq(0).all()
