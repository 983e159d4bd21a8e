"""The loop reference against nn.Linear, token by token."""

import pytest
import torch
from torch.nn.functional import linear, silu

from mixtura.kernels import reference
from tests.kernels.cases import Operands, make_index


@pytest.mark.parametrize("bias", [False, True])
def test_each_row_is_its_experts_mlp_times_its_weight(bias):
    choices = [[2, 0], [0, 2], [2, 0]]
    index = make_index(choices, num_experts=3)
    operands = Operands.random(index, activation="swiglu", bias=bias)
    y_ND = operands.run(reference.grouped_mlp, index)
    for t, row in enumerate(choices):
        for k, e in enumerate(row):
            n = index.slot_TK[t, k]
            z = linear(operands.x[t], operands.up[e], None if not bias else operands.up_bias[e])
            a = silu(z[:7]) * z[7:]
            y = linear(a, operands.down[e], None if not bias else operands.down_bias[e])
            torch.testing.assert_close(y_ND[n], operands.weight[n] * y)


def test_no_rows_and_the_dtype_of_x():
    index = make_index([[-1], [-1]], num_experts=2)
    operands = Operands.random(index, activation="relu", bias=True).cast(torch.bfloat16)
    y_ND = operands.run(reference.grouped_mlp, index)
    assert y_ND.tolist() == [[0.0] * 5] * 2  # nothing but a tail
    assert y_ND.dtype is torch.bfloat16


def test_an_expert_without_rows_gets_zero_gradients():
    index = make_index([[0], [2]], num_experts=3)
    operands = Operands.random(index, activation="gelu", bias=True)
    operands.run(reference.grouped_mlp, index).sum().backward()
    for name in ("up", "down", "up_bias", "down_bias"):
        grad = getattr(operands, name).grad
        assert grad[1].eq(0).all()
        assert grad[0].ne(0).any()
