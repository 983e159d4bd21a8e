"""Losses of parameters: values by hand, gradients, experts of every kind, refusals."""

import pytest
import torch
from torch import nn

import mixtura as mx
from mixtura import UserError
from mixtura.losses.parameters import PARAMETER_LOSSES, l1, l2, orthogonality, router_orthogonality


def linear(rows) -> nn.Linear:
    weight = torch.tensor(rows)
    module = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    with torch.no_grad():
        module.weight.copy_(weight)
    return module


class TestPenalties:
    def test_by_hand_over_all_parameters_of_the_router(self):
        router = mx.routers.NoisyTopK(2, num_experts=2, k=1)
        with torch.no_grad():
            router.weight.copy_(torch.tensor([[1.0, -2.0], [0.0, 3.0]]))
            router.noise_weight.copy_(torch.tensor([[0.0, 0.5], [0.0, 0.0]]))
        assert l1(router, nn.Identity()).item() == 6.5
        assert l2(router, nn.Identity()).item() == 14.25

    def test_gradients(self):
        gate = linear([[1.0, -2.0], [0.0, 3.0]])
        l1(gate, nn.Identity()).backward()
        assert gate.weight.grad.tolist() == [[1.0, -1.0], [0.0, 1.0]]
        gate.zero_grad()
        l2(gate, nn.Identity()).backward()
        assert gate.weight.grad.tolist() == [[2.0, -4.0], [0.0, 6.0]]


class TestRouterOrthogonality:
    def test_by_hand(self):
        # Cosines: 0 between the first two rows, 1/sqrt(2) of each with the third: 0, 1/2, 1/2.
        gate = linear([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0]])
        assert router_orthogonality(gate, nn.Identity()).item() == pytest.approx(1 / 3)

    def test_it_turns_rows_apart_and_keeps_their_lengths(self):
        gate = linear([[1.0, 0.1], [1.0, -0.1]])
        router_orthogonality(gate, nn.Identity()).backward()
        along = (gate.weight.grad * gate.weight.detach()).sum(1)
        torch.testing.assert_close(along, torch.zeros(2), atol=1e-6, rtol=0)
        assert gate.weight.grad[0, 1] < 0 < gate.weight.grad[1, 1]

    @pytest.mark.parametrize("rows", [[[0.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [1.0, 0.0]], [[1.0, 2.0]]])
    def test_rows_of_zeros_and_a_single_expert(self, rows):
        gate = linear(rows)
        value = router_orthogonality(gate, nn.Identity())
        value.backward()
        assert value.item() == 0
        assert not gate.weight.grad.any()

    def test_a_gate_of_ones_own_has_no_rows(self):
        router = mx.routers.TopK(4, 3, gate=nn.Linear(4, 3))
        with pytest.raises(
            UserError, match="one weight matrix for the loss 'router_orthogonality', got a TopK without"
        ):
            router_orthogonality(router, nn.Identity())


class TestOrthogonality:
    def test_by_hand(self):
        experts = mx.ModuleExperts([linear([[1.0, 1.0]]), linear([[1.0, 0.0]]), linear([[0.0, -2.0]])])
        assert orthogonality(nn.Identity(), experts).item() == pytest.approx((1 / 2 + 1 / 2 + 0) / 3)

    @pytest.mark.parametrize("bias", [False, True])
    def test_stacked_experts_are_their_flat_weights(self, bias):
        experts = mx.GroupedMLP(num_experts=4, dim=3, hidden=5, bias=bias)
        flat_EP = torch.cat([p.detach().flatten(1) for p in experts.parameters()], dim=1)
        cosine_EE = torch.nn.functional.cosine_similarity(flat_EP.unsqueeze(0), flat_EP.unsqueeze(1), dim=-1)
        expected = (cosine_EE.square().sum() - 4) / 12
        torch.testing.assert_close(orthogonality(nn.Identity(), experts).detach(), expected)

    def test_separate_experts_count_as_stacked_ones(self):
        stacked = mx.GroupedMLP(num_experts=3, dim=3, hidden=5, bias=True)
        separate = mx.ModuleExperts([mx.MLP(dim=3, hidden=5, bias=True) for _ in range(3)])
        with torch.no_grad():
            for e, mlp in enumerate(separate):
                for part in ("up", "down"):
                    module = getattr(mlp, f"{part}_proj")
                    module.weight.copy_(getattr(stacked, f"{part}_proj")[e])
                    module.bias.copy_(getattr(stacked, f"{part}_bias")[e])
        torch.testing.assert_close(orthogonality(nn.Identity(), stacked), orthogonality(nn.Identity(), separate))

    def test_copies_drift_apart_in_training(self):
        layer = mx.MoEConfig(dim=4, hidden=6, num_experts=3, k=2, losses={"orthogonality": 10.0}).build()
        with torch.no_grad():
            for p in layer.experts.parameters():
                p.copy_(p[:1] + 0.01 * torch.randn_like(p))
        before = orthogonality(layer.router, layer.experts).item()
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.05)
        for _ in range(40):
            optimizer.zero_grad()
            layer(torch.randn(8, 4)).square().mean().backward()
            optimizer.step()
        assert before > 0.95
        assert orthogonality(layer.router, layer.experts).item() < 0.5

    def test_experts_of_different_kinds_have_no_angle(self):
        experts = mx.ModuleExperts([nn.Linear(4, 4), nn.Linear(4, 4, bias=False)])
        with pytest.raises(UserError, match="parameters of the same shapes for the loss 'orthogonality'"):
            orthogonality(nn.Identity(), experts)
        with pytest.raises(UserError, match="parameters of the same shapes"):
            orthogonality(nn.Identity(), mx.ModuleExperts([nn.Identity(), nn.Identity()]))


@pytest.mark.parametrize("name", PARAMETER_LOSSES)
def test_the_gradient_is_that_of_finite_differences(name):
    router = mx.routers.TopK(3, 4, init_std=1.0)
    experts = mx.GroupedMLP(num_experts=4, dim=3, hidden=2)
    parameters = [*router.parameters(), *experts.parameters()]
    value = PARAMETER_LOSSES[name](router, experts)
    grads = torch.autograd.grad(value, parameters, allow_unused=True)
    for parameter, grad in zip(parameters, grads, strict=True):
        direction = torch.randn_like(parameter)
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter += sign * 1e-2 * direction
                ends.append(PARAMETER_LOSSES[name](router, experts).double())
                parameter -= sign * 1e-2 * direction
        slope = (ends[0] - ends[1]) / 2e-2
        expected = torch.zeros(()) if grad is None else (grad * direction).sum()
        torch.testing.assert_close(slope.float(), expected, rtol=0.02, atol=2e-3)


@pytest.mark.parametrize("name", PARAMETER_LOSSES)
def test_bf16_parameters_are_summed_in_fp32(name):
    layer = mx.MoEConfig(dim=4, hidden=6, num_experts=3, losses={name: 1.0}).build().bfloat16()
    with mx.collect_losses(layer) as losses:
        layer(torch.randn(3, 4).bfloat16())
    assert losses.total().dtype is torch.float32
