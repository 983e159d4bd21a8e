import pytest
import torch

import mixtura as mx
from mixtura.errors import UserError
from mixtura.kernels.activations import StackedMLP
from mixtura.routers import Switch, TopK
from mixtura.surgery.initial import Drop, Noise, Random, Split, Upcycle, cut
from mixtura.surgery.sites import dense_forward


def mlp(activation="swiglu", *, bias=True):
    rows = 24 if activation == "swiglu" else 12
    return StackedMLP(
        up=torch.randn(1, rows, 8),
        down=torch.randn(1, 8, 12),
        up_bias=torch.randn(1, rows) if bias else None,
        down_bias=torch.randn(1, 8) if bias else None,
        activation=activation,
    )


def make(init, dense, router=None):
    return init.experts(dense, router or TopK(8, 4, 2), inputs_TD=None)


def test_copies():
    dense = mlp()
    stack = make(Upcycle(), dense)
    for name in ("up", "down", "up_bias", "down_bias"):
        assert torch.allclose(getattr(stack, name), getattr(dense, name).expand_as(getattr(stack, name)))


def test_noise_is_relative_to_each_matrix_and_spares_biases():
    dense = mlp()
    stack = make(Noise(std=0.1), dense._replace(down=100 * dense.down))
    assert (stack.up - dense.up).std().item() == pytest.approx(0.1 * dense.up.std().item(), rel=0.1)
    assert (stack.down - 100 * dense.down).std().item() == pytest.approx(10 * dense.down.std().item(), rel=0.1)
    assert torch.allclose(stack.down_bias, dense.down_bias.expand(4, -1))
    assert not torch.allclose(stack.up[0], stack.up[1])


@pytest.mark.parametrize("activation", ["relu", "swiglu"])
def test_drop_redraws_whole_units_and_keeps_the_others(activation):
    dense = mlp(activation)
    dense = dense._replace(down=dense.down * 0.1 + 5)
    stack = make(Drop(ratio=0.25), dense)
    kept = torch.isclose(stack.down, dense.down).all(1)  # (E, F)
    assert kept.sum(1).tolist() == [9] * 4
    rows = torch.isclose(stack.up, dense.up).all(2)
    for half in rows.chunk(2 if activation == "swiglu" else 1, dim=1):
        assert torch.equal(half, kept)
    assert len({tuple(row) for row in kept.tolist()}) > 1
    fresh = stack.down.transpose(1, 2)[~kept]
    assert fresh.mean().item() == pytest.approx(5, abs=0.1)
    assert fresh.std().item() == pytest.approx(0.1, rel=0.3)
    assert not stack.up_bias.where(~rows, 0).any()


def test_a_ratio_out_of_range():
    with pytest.raises(UserError, match=r"a ratio from 0 to 1, got 1\.5"):
        Drop(ratio=1.5)


def test_split_experts_are_slices_that_are_chosen_together():
    dense, router = mlp(), TopK(8, 4, 2)
    rows = router.weight.detach().clone()
    stack = make(Split(), dense, router)
    assert torch.equal(router.weight, rows[[0, 0, 2, 2]])
    assert torch.equal(stack.up[1], dense.up[0][[*range(6, 12), *range(18, 24)]])
    torch.testing.assert_close(stack.down[2], 2 * dense.down[0][:, :6])
    torch.testing.assert_close(stack.down_bias, dense.down_bias.expand(4, -1))


@pytest.mark.parametrize(("activation", "root"), [("relu", 2), ("swiglu", 3)])
@pytest.mark.parametrize(("order", "factor"), [("topk_softmax", 2.0), ("softmax_topk", 4.0)])
def test_published_scales_of_fine_grained_upcycling(activation, root, order, factor):
    # G = 2 slices, R = 2 copies, k = 2: G for a softmax over the chosen, R * G^2 / k for one over all experts
    dense, router = mlp(activation, bias=False), TopK(8, 4, 2, order=order, init_std=0.0)
    stack = make(Split(parts=2, scale="all"), dense, router)
    torch.testing.assert_close(stack.down[0], factor ** (1 / root) * dense.down[0][:, :6])
    up = dense.up[0][[*range(6), *range(12, 18)]] if activation == "swiglu" else dense.up[0][:6]
    torch.testing.assert_close(stack.up[0], factor ** (1 / root) * up)


def test_that_scale_keeps_the_output_of_a_homogeneous_activation_alone():
    x, outputs = torch.randn(20, 8), {}
    for activation in ("relu", "swiglu"):
        dense, router = mlp(activation), TopK(8, 4, 2)
        stack = make(Split(scale="all"), dense, router)
        experts = mx.GroupedMLP(num_experts=4, dim=8, hidden=6, activation=activation, bias=True)
        for name, tensor in zip(("up_proj", "down_proj", "up_bias", "down_bias"), stack, strict=False):
            getattr(experts, name).data = tensor
        outputs[activation] = (mx.MoE(router=router, experts=experts)(x) - dense_forward(dense, x)).abs().max()
    assert outputs["relu"] < 1e-5
    assert outputs["swiglu"] > 1e-2


def test_split_refuses_what_it_cannot_share_out():
    with pytest.raises(UserError, match="parts that divide the hidden width 12, num_experts=4 and k=2, got 4"):
        make(Split(parts=4), mlp())
    gate = torch.nn.Linear(8, 4)
    with pytest.raises(UserError, match="one row of a matrix for each expert, got TopK"):
        make(Split(), mlp(), TopK(8, 4, 2, gate=gate))


def test_weights_that_sum_to_less_than_one_are_made_up_for():
    dense = mlp()
    stack = make(Upcycle(), dense, Switch(8, 4, init_std=0.0))  # weight 1/4 for every token
    torch.testing.assert_close(stack.down[3], 4 * dense.down[0])


def test_random_experts_have_the_sizes_alone():
    dense = mlp()
    stack = make(Random(), dense)
    assert stack.up.shape == (4, 24, 8)
    assert stack.up.abs().max() <= 8**-0.5
    assert stack.down.abs().max() <= 12**-0.5
    assert not torch.allclose(stack.up[0], stack.up[1])


def test_groups_of_units_add_up_to_the_mlp():
    dense, x = mlp(), torch.randn(5, 8)
    groups = torch.randperm(12).view(3, 4)
    stack = cut(dense, groups)
    total = sum(dense_forward(stack, x, expert=e) for e in range(3))
    torch.testing.assert_close(total, dense_forward(dense, x), rtol=0, atol=1e-4)
