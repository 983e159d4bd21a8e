"""What is particular to torch's grouped products: alignment, and rows that belong to nobody."""

import pytest
import torch

from mixtura.kernels import grouped_mm, reference
from tests.kernels.cases import EVEN, Operands, error, make_index


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("dim", "hidden"), [(8, 16), (8, 3), (3, 8), (1, 1), (17, 9)])
def test_any_width_is_computed_though_torch_wants_whole_16_bytes(dtype, dim, hidden):
    index = make_index(EVEN[:9], num_experts=5)
    operands = Operands.random(index, activation="swiglu", bias=False, dim=dim, hidden=hidden).cast(dtype)
    dy_ND = torch.randn(18, dim).to(dtype)
    expected = operands.results(reference.grouped_mlp, index, dy_ND)
    got = operands.results(grouped_mm.grouped_mlp, index, dy_ND)
    for name, value in expected.items():
        assert got[name].shape == value.shape
        assert got[name].is_contiguous()
        assert error(got[name], value) < (1e-5 if dtype is torch.float32 else 3e-2), name


def test_weights_of_another_memory_order_are_read_right():
    index = make_index(EVEN[:9], num_experts=4)
    operands = Operands.random(index, activation="gelu", bias=False)
    operands.up = operands.up.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()
    dy_ND = torch.randn(18, 5)
    expected = operands.results(reference.grouped_mlp, index, dy_ND)
    got = operands.results(grouped_mm.grouped_mlp, index, dy_ND)
    assert max(error(got[name], value) for name, value in expected.items()) < 1e-5
