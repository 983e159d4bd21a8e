"""Activations of tiles against those of tensors, derivatives included."""

import pytest
import torch

from mixtura.kernels.activations import ACTIVATIONS
from mixtura.kernels.triton.activations import NAMES, activate, gated_backward, gated_forward, halve, slope
from mixtura.kernels.triton.language import tl, triton


@triton.jit
def plain_kernel(z, da, a, dz, NAME: tl.constexpr):
    i = tl.arange(0, 64)
    value = tl.load(z + i)
    tl.store(a + i, activate(value, NAME))
    tl.store(dz + i, tl.load(da + i) * slope(value, NAME))


@triton.jit
def gated_kernel(z, da, a, again, dz, NAME: tl.constexpr):
    i = tl.arange(0, 32)
    gate, up = tl.load(z + i), tl.load(z + 32 + i)
    tl.store(a + i, gated_forward(gate, up, NAME))
    value, dgate, dup = gated_backward(tl.load(da + i), gate, up, NAME)
    tl.store(again + i, value)
    tl.store(dz + i, dgate)
    tl.store(dz + 32 + i, dup)


@triton.jit
def halve_kernel(tile, left, right):
    row, column, half = tl.arange(0, 4), tl.arange(0, 8), tl.arange(0, 4)
    a, b = halve(tl.load(tile + row[:, None] * 8 + column[None, :]))
    tl.store(left + row[:, None] * 4 + half[None, :], a)
    tl.store(right + row[:, None] * 4 + half[None, :], b)


def test_every_activation_has_its_tile():
    assert set(ACTIVATIONS) <= set(NAMES)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_values_and_derivatives(name):
    z = torch.randn(64) * 4
    z[:4] = torch.tensor([0.0, torch.nan, 30.0, -30.0])
    da = torch.randn(32 if ACTIVATIONS[name].gated else 64)
    a, again, dz = torch.empty_like(da), torch.empty_like(da), torch.empty_like(z)
    if ACTIVATIONS[name].gated:
        gated_kernel[(1,)](z, da, a, again, dz, NAME=name)
        torch.testing.assert_close(again, a, equal_nan=True)
    else:
        plain_kernel[(1,)](z, da, a, dz, NAME=name)
    expected_a, expected_dz = ACTIVATIONS[name].backward(da, z)
    torch.testing.assert_close(a, expected_a, equal_nan=True)
    finite = ~z.isnan() if not ACTIVATIONS[name].gated else ~torch.cat([expected_a, expected_a]).isnan()
    torch.testing.assert_close(dz[finite], expected_dz[finite])


def clamped_swiglu(z):
    """As gpt-oss defines it, in plain torch."""
    gate, up = z.chunk(2)
    gate, up = gate.clamp(max=7.0), up.clamp(-7.0, 7.0)
    return (up + 1) * gate * torch.sigmoid(1.702 * gate)


def test_the_clamped_swiglu_and_its_derivative():
    z = (torch.randn(64) * 6).requires_grad_()
    assert (z > 7).any()
    assert (z < -7).any()
    da = torch.randn(32)
    expected = clamped_swiglu(z)
    (expected_dz,) = torch.autograd.grad(expected, z, da)
    a, again, dz = torch.empty(32), torch.empty(32), torch.empty(64)
    gated_kernel[(1,)](z.detach(), da, a, again, dz, NAME="clamped_swiglu")
    torch.testing.assert_close(a, expected.detach())
    torch.testing.assert_close(again, a)
    torch.testing.assert_close(dz, expected_dz)


def test_halves_keep_the_order_of_columns():
    tile, left, right = torch.arange(32.0).view(4, 8), torch.empty(4, 4), torch.empty(4, 4)
    halve_kernel[(1,)](tile, left, right)
    assert torch.equal(torch.cat([left, right], 1), tile)
