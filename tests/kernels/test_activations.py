"""Activations: values, and the hand-written derivatives against autograd."""

from functools import partial

import pytest
import torch
from torch.nn.functional import gelu, silu

from mixtura.kernels.activations import ACTIVATIONS, WOVEN, unweave, weave

Z = torch.tensor([-30.0, -2.0, -0.5, 0.0, 0.5, 2.0, 30.0, 1.0])
gelu_tanh = partial(gelu, approximate="tanh")
PLAIN = {"relu": torch.relu, "gelu": gelu, "gelu_tanh": gelu_tanh, "silu": silu}
GATED = {"swiglu": silu, "geglu": gelu, "geglu_tanh": gelu_tanh}
CLAMPED = "clamped_swiglu"


def test_the_names_are_known():
    assert set(ACTIVATIONS) == {*PLAIN, *GATED, CLAMPED}
    assert {name for name, activation in ACTIVATIONS.items() if activation.gated} == {*GATED, CLAMPED}


@pytest.mark.parametrize("name", PLAIN)
def test_plain_values(name):
    assert torch.equal(ACTIVATIONS[name].forward(Z), PLAIN[name](Z))


@pytest.mark.parametrize("name", GATED)
def test_the_gate_half_comes_first(name):
    z = torch.stack([Z, Z.flip(0)]).view(1, 16)
    assert torch.equal(ACTIVATIONS[name].forward(z), (GATED[name](Z) * Z.flip(0)).view(1, 8))


def test_the_clamped_one_by_hand():
    gate, up = torch.tensor([1.0, 9.0, -9.0]), torch.tensor([0.5, -8.0, 8.0])
    sigmoid = torch.sigmoid(1.702 * torch.tensor([1.0, 7.0, -9.0]))
    expected = torch.tensor([1.5, -6.0, 8.0]) * torch.tensor([1.0, 7.0, -9.0]) * sigmoid
    torch.testing.assert_close(ACTIVATIONS[CLAMPED].forward(torch.cat([gate, up])), expected)


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.usefixtures("poison")
def test_backward_gives_the_activation_and_its_derivative(name, dtype):
    activation = ACTIVATIONS[name]
    z = torch.cat([Z, torch.randn(24)]).view(2, 16).to(dtype).requires_grad_()
    a = activation.forward(z)
    da = torch.randn(a.shape).to(dtype)
    (expected,) = torch.autograd.grad(a, z, da)
    again, dz = activation.backward(da, z.detach())
    assert torch.equal(again, a)
    assert again.is_contiguous()
    assert dz.is_contiguous()
    torch.testing.assert_close(dz, expected, rtol=2e-2 if dtype is torch.bfloat16 else 1e-6, atol=1e-6)


def test_backward_leaves_its_inputs_alone():
    z, da = torch.randn(3, 8), torch.randn(3, 4)
    kept = z.clone(), da.clone()
    a, _ = ACTIVATIONS["swiglu"].backward(da, z)
    a.zero_()
    assert torch.equal(z, kept[0])
    assert torch.equal(da, kept[1])


@pytest.mark.parametrize("name", WOVEN)
def test_columns_that_alternate(name):
    """g0 u0 g1 u1 ... through it is g0 g1 ... u0 u1 ... through the plain one, and so is the gradient."""
    plain, z, da = ACTIVATIONS[name.removeprefix("woven_")], torch.randn(3, 8), torch.randn(3, 4)
    halves = torch.cat([z[:, ::2], z[:, 1::2]], dim=1)
    assert torch.equal(WOVEN[name].forward(z), plain.forward(halves))
    a, dz = WOVEN[name].backward(da, z)
    expected_a, expected_dz = plain.backward(da, halves)
    assert torch.equal(a, expected_a)
    assert torch.equal(torch.cat([dz[:, ::2], dz[:, 1::2]], dim=1), expected_dz)
    assert torch.equal(unweave(z), halves)
    assert torch.equal(weave(halves), z)
