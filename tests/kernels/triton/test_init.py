"""The entry of the triton kernel."""

import pytest
import torch

from mixtura import UserError
from mixtura.kernels import triton
from tests.kernels.cases import Operands, make_index


def test_tensors_on_a_cpu_need_the_interpreter(monkeypatch):
    monkeypatch.setattr(triton, "INTERPRETED", False)
    index = make_index([[0]], num_experts=1)
    operands = Operands.random(index, activation="relu", bias=False)
    with pytest.raises(UserError, match="expected CUDA tensors for the triton kernel, got cpu; TRITON_INTERPRET=1"):
        operands.run(triton.grouped_mlp, index)


def test_a_view_is_read_as_what_it_shows():
    index = make_index([[0], [1]], num_experts=2)
    operands = Operands.random(index, activation="relu", bias=False)
    expected = operands.run(triton.grouped_mlp, index)
    wide = torch.randn(2, 10)
    wide[:, ::2] = operands.x.detach()
    operands.x = wide[:, ::2]
    operands.up = operands.up.detach().transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(operands.run(triton.grouped_mlp, index), expected)
