"""Gradients of matrices and biases, against plain torch."""

import pytest
import torch

from mixtura.kernels.triton.configs import Config
from mixtura.kernels.triton.schedule import schedule_launch
from mixtura.kernels.triton.weights import sums_launch, weights_launch

COUNTS, TAIL = (0, 20, 0, 3, 0), 6
EXPERTS = [1] * 20 + [3] * 3


def schedule_of():
    schedule, launch = schedule_launch(torch.tensor(COUNTS), num_rows=sum(COUNTS) + TAIL, height=16)
    launch.run()
    return schedule


def rows(width):
    """Random rows with a tail of NaN."""
    values = torch.randn(sum(COUNTS) + TAIL, width)
    values[sum(COUNTS) :] = torch.nan
    return values


@pytest.mark.parametrize("gather", [True, False])
@pytest.mark.usefixtures("poison")
def test_each_experts_sum_of_outer_products_and_zeros_without_rows(gather):
    left_NX, right, token_N = rows(20), rows(40), None
    if gather:
        token_N, right = torch.arange(29) % 4, torch.randn(4, 40)
    config = Config(16, 32, 16, 4, 2)
    out, launch = weights_launch(left_NX, right, token_N=token_N, schedule=schedule_of(), config=config)
    launch.run()
    expected = torch.zeros(5, 20, 40)
    for n, e in enumerate(EXPERTS):
        expected[e] += torch.outer(left_NX[n], right[token_N[n] if gather else n])
    torch.testing.assert_close(out, expected)
    assert out[[0, 2, 4]].eq(0).all()


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.usefixtures("poison")
def test_each_experts_sum_of_rows_and_zeros_without_rows(weighted):
    values, weight_N = rows(70), rows(1).flatten() if weighted else None
    out, launch = sums_launch(values, weight_N=weight_N, schedule=schedule_of())
    launch.run()
    expected = torch.zeros(5, 70)
    for n, e in enumerate(EXPERTS):
        expected[e] += values[n] * (weight_N[n] if weighted else 1)
    torch.testing.assert_close(out, expected)
