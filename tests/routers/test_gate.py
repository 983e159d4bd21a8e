"""Gate: any module's logits."""

import pytest
import torch
from torch import nn

import mixtura as mx
from mixtura import UserError
from mixtura.routers import Gate, SigmoidBias, TopK


class TaskGate(nn.Module):
    """One row of logits per task."""

    def __init__(self, tasks, num_experts):
        super().__init__()
        self.logits = nn.Embedding(tasks, num_experts)

    def forward(self, x_TD, task_T):
        return self.logits(task_T)


class TestGate:
    def test_it_is_topk_over_the_modules_logits(self):
        module, x_TD = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 5)), torch.randn(6, 4)
        routing = Gate(module, dim=4, num_experts=5, k=2)(x_TD)
        logits_TE = module(x_TD)
        torch.testing.assert_close(routing.logits_TE, logits_TE)
        assert torch.equal(routing.expert_N.view(6, 2), logits_TE.topk(2).indices)
        torch.testing.assert_close(routing.weight_N.view(6, 2), logits_TE.topk(2).values.softmax(-1))
        assert isinstance(Gate(module, dim=4, num_experts=5), TopK)

    def test_order_and_options_are_topks(self):
        module, x_TD = nn.Linear(4, 5), torch.randn(6, 4)
        routing = Gate(module, dim=4, num_experts=5, k=1, order="softmax_topk", temperature=2.0)(x_TD)
        torch.testing.assert_close(routing.weight_N, (module(x_TD) / 2).softmax(-1).max(-1).values)

    def test_dropout_acts_in_training_only(self):
        router = Gate(nn.Sequential(nn.Linear(4, 64), nn.Dropout(0.5), nn.Linear(64, 5)), dim=4, num_experts=5)
        x_TD = torch.randn(6, 4)
        assert not torch.equal(router(x_TD).logits_TE, router(x_TD).logits_TE)
        router.eval()
        assert torch.equal(router(x_TD).logits_TE, router(x_TD).logits_TE)

    def test_a_gate_per_task(self):
        gate = TaskGate(2, 3)
        with torch.no_grad():
            gate.logits.weight.copy_(torch.tensor([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0]]))
        layer = mx.MoE(
            router=Gate(gate, dim=4, num_experts=3, k=1, order="softmax_topk", needs_context=True),
            experts=mx.GroupedMLP(num_experts=3, dim=4, hidden=4),
        )
        with mx.record(layer) as log:
            layer(torch.randn(2, 2, 4), context=torch.tensor([[0, 1], [1, 0]]))
        assert log[""][0].routing.expert_N.tolist() == [0, 2, 2, 0]
        with pytest.raises(UserError, match="expected context= for a Gate router, got None"):
            layer(torch.randn(2, 4))

    def test_the_gate_learns(self):
        gate = nn.Linear(4, 3)
        router = Gate(gate, dim=4, num_experts=3)
        (router(torch.randn(5, 4)).weight_N * torch.randn(10)).sum().backward()
        assert gate.weight.grad.norm() > 0

    def test_a_gate_in_half_precision_computes_in_fp32(self):
        router, x_TD = Gate(nn.Linear(4, 3), dim=4, num_experts=3).bfloat16(), torch.randn(5, 4).bfloat16()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits_TE = router(x_TD).logits_TE
        weight, bias = router.gate.weight.float(), router.gate.bias.float()
        torch.testing.assert_close(logits_TE, x_TD.float() @ weight.T + bias, atol=1e-6, rtol=1e-6)
        logits_TE.sum().backward()
        assert router.gate.weight.grad.norm() > 0

    def test_any_router_takes_one(self):
        gate = nn.Linear(4, 3)
        torch.testing.assert_close(SigmoidBias(4, 3, gate=gate)(torch.ones(1, 4)).logits_TE, gate(torch.ones(1, 4)))

    @pytest.mark.parametrize(
        ("module", "got"),
        [
            (nn.Linear(4, 5), r"\(6, 5\)"),
            (nn.Flatten(0), r"\(24,\)"),
            (nn.LSTM(4, 3), "tuple"),
        ],
    )
    def test_wrong_logits_are_one_error(self, module, got):
        with pytest.raises(UserError, match=rf"expected logits of shape \(T, E\) = \(6, 3\) from the gate, got {got}"):
            Gate(module, dim=4, num_experts=3)(torch.randn(6, 4))

    def test_too_many_choices(self):
        with pytest.raises(UserError, match="expected 1 <= k <= num_experts, got k=4 with num_experts=3"):
            Gate(nn.Linear(4, 3), dim=4, num_experts=3, k=4)

    def test_resetting_draws_the_gate_afresh_and_making_does_not(self):
        gate = nn.Linear(4, 3)
        before = gate.weight.detach().clone()
        router = Gate(gate, dim=4, num_experts=3)
        assert torch.equal(gate.weight, before)
        router.reset_parameters()
        assert not torch.equal(gate.weight, before)

    def test_a_gate_that_cannot_be_reset_is_told(self):
        class Bare(nn.Module):
            def __init__(self):
                super().__init__()
                self.weight = nn.Parameter(torch.zeros(3, 4))

        with pytest.raises(UserError, match="expected a gate whose parts have reset_parameters, got Bare"):
            Gate(Bare(), dim=4, num_experts=3).reset_parameters()
