"""The up product with its epilogue, against plain torch."""

import pytest
import torch
from torch.nn.functional import silu

from mixtura.kernels.triton.configs import Config
from mixtura.kernels.triton.schedule import schedule_launch
from mixtura.kernels.triton.up import up_launch

COUNTS, TAIL = (20, 0, 3), 5


@pytest.mark.parametrize("keep_z", [True, False])
@pytest.mark.usefixtures("poison")
def test_z_and_the_weighted_activation_of_real_rows_only(keep_z):
    N, T, D, F = sum(COUNTS) + TAIL, 7, 20, 24
    token_N = torch.arange(N) % T
    x_TD, up, bias, weight_N = torch.randn(T, D), torch.randn(3, 2 * F, D), torch.randn(3, 2 * F), torch.rand(N)
    schedule, launch = schedule_launch(torch.tensor(COUNTS), num_rows=N, height=16)
    launch.run()
    a_NF, z, launch = up_launch(
        x_TD,
        weight_N,
        up,
        token_N=token_N,
        bias=bias,
        keep_NF=None,
        activation="swiglu",
        keep_z=keep_z,
        schedule=schedule,
        config=Config(16, 16, 16, 4, 2),
    )
    launch.run()
    expert_N = torch.tensor([0] * 20 + [2] * 3)
    expected_z = torch.einsum("nd,nfd->nf", x_TD[token_N[:23]], up[expert_N]) + bias[expert_N]
    expected_a = silu(expected_z[:, :F]) * expected_z[:, F:] * weight_N[:23, None]
    torch.testing.assert_close(a_NF[:23], expected_a)
    assert a_NF[23:].isnan().all()  # nobody reads the tail, so nobody writes it
    assert z.shape == (N if keep_z else 0, 2 * F)
    torch.testing.assert_close(z[:23], expected_z if keep_z else z)
