"""The kernels for GPUs against the loop reference: output, gradients, tails, dropout, empty experts, poisoned memory.

`cpu` has the same comparison with its own layouts in `test_cpu.py`.
"""

import pytest
import torch

from mixtura.kernels import KERNELS, reference
from mixtura.kernels.activations import ACTIVATIONS
from tests.kernels.cases import EVEN, INDICES, Operands, compare, compare_rounded, error, make_index

kernels = pytest.mark.parametrize("name", ["grouped_mm", "triton"])


@kernels
@pytest.mark.parametrize(("choices", "regular"), INDICES.values(), ids=list(INDICES))
@pytest.mark.usefixtures("poison")
def test_every_index(name, choices, regular):
    index = make_index(choices, num_experts=4, regular=regular)
    compare(KERNELS[name], Operands.random(index, activation="swiglu", bias=True), index)


@kernels
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.usefixtures("poison")
def test_every_activation(name, activation):
    index = make_index(EVEN[:13], num_experts=5)  # uneven, and expert 4 empty
    compare(KERNELS[name], Operands.random(index, activation=activation, bias=False), index)


@kernels
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("activation", ["geglu", "relu"])
def test_rounding_is_not_worse_than_the_reference_in_the_same_dtype(name, dtype, activation):
    index = make_index(EVEN * 2, num_experts=4)
    operands = Operands.random(index, activation=activation, bias=activation == "geglu", dim=32, hidden=48)
    compare_rounded(KERNELS[name], operands.cast(dtype), index)


@kernels
@pytest.mark.parametrize("regular", [True, False], ids=["slots", "no slots"])
@pytest.mark.parametrize("choices", [[[0, -1], [2, 0], [-1, 2]] * 4, [[-1]] * 3], ids=["some", "all"])
@pytest.mark.usefixtures("poison")
def test_a_tail_is_never_read(name, regular, choices):
    index = make_index(choices, num_experts=3, regular=regular)
    operands = Operands.random(index, activation="swiglu", bias=True)
    kept, dy_ND = int(index.counts_E.sum()), torch.randn(index.token_N.shape[0], 5)
    with torch.no_grad():
        operands.weight[kept:] = dy_ND[kept:] = torch.nan
    expected = operands.results(reference.grouped_mlp, index, dy_ND)
    got = operands.results(KERNELS[name], index, dy_ND)
    assert got["output"][kept:].eq(0).all()
    assert got["weight"][kept:].eq(0).all()
    assert max(error(got[key], value) for key, value in expected.items()) < 1e-5


@kernels
@pytest.mark.parametrize("activation", ["swiglu", "gelu"])
def test_dropout_inside_the_experts_multiplies_the_activation(name, activation):
    index = make_index(EVEN[:12], num_experts=4)
    compare(KERNELS[name], Operands.random(index, activation=activation, bias=True, dropout=0.3), index)
