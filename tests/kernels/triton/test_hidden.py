"""The hidden side's gradients, against autograd."""

import pytest
import torch

from mixtura.kernels.activations import ACTIVATIONS
from mixtura.kernels.triton.configs import Config
from mixtura.kernels.triton.hidden import hidden_launch
from mixtura.kernels.triton.schedule import schedule_launch

COUNTS, TAIL = (20, 0, 3), 5


@pytest.mark.parametrize("activation", ["geglu", "relu"])
@pytest.mark.usefixtures("poison")
def test_dz_the_activation_and_the_parts_of_the_weights_gradient(activation):
    N, n, D, F = sum(COUNTS) + TAIL, sum(COUNTS), 20, 40
    dy_ND, weight_N, down, bias = torch.randn(N, D), torch.rand(N), torch.randn(3, D, F), torch.randn(3, D)
    z = torch.randn(N, 2 * F if ACTIVATIONS[activation].gated else F)
    schedule, launch = schedule_launch(torch.tensor(COUNTS), num_rows=N, height=16)
    launch.run()
    hidden, launch = hidden_launch(
        dy_ND,
        weight_N,
        down,
        down_bias=bias,
        z=z,
        keep_NF=None,
        activation=activation,
        schedule=schedule,
        config=Config(16, 32, 16, 4, 2, 2),
    )
    launch.run()
    expert_n = torch.tensor([0] * 20 + [2] * 3)
    z_n, weight_n = z[:n].clone().requires_grad_(), weight_N[:n].clone().requires_grad_()
    a = ACTIVATIONS[activation].forward(z_n) * weight_n[:, None]
    y = torch.einsum("nf,ndf->nd", a, down[expert_n]) + bias[expert_n] * weight_n[:, None]
    dz, dweight = torch.autograd.grad(y, (z_n, weight_n), dy_ND[:n])
    torch.testing.assert_close(hidden.dz[:n], dz)
    torch.testing.assert_close(hidden.a_NF[:n], a.detach())
    assert hidden.dweight_PN.shape == (2, N)
    torch.testing.assert_close(hidden.dweight_PN.sum(0)[:n], dweight)
    assert hidden.dweight_PN[:, n:].eq(0).all()
