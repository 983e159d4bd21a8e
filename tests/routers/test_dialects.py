"""The gates of FastMoE and Paddle, by hand: weights, capacities, what is dropped in which order, noise."""

import dataclasses

import pytest
import torch

import mixtura as mx
from mixtura import UserError, losses
from mixtura.routers.dialects import GShardGate, NaiveGate, SwitchGate, prune
from tests.routers.tables import rows, with_logits

LOGITS = [[2.0, 0.5, 1.0], [-1.0, 3.0, 0.0]]
# Every token: expert 0 first, expert 1 second.
ALIKE = [[3.0, 1.0, 0.0, -1.0]] * 5


def chance(monkeypatch, values):
    monkeypatch.setattr(torch, "rand_like", lambda like: torch.tensor(values))


class TestNaive:
    def test_fastmoe_weights_are_the_softmax_over_the_chosen(self):
        routing = with_logits(NaiveGate(2, 3, 2), LOGITS)
        assert rows(routing.expert_N, 2) == [[0, 2], [1, 2]]
        torch.testing.assert_close(routing.weight_N.view(2, 2), torch.tensor([[2.0, 1.0], [3.0, 0.0]]).softmax(-1))

    def test_paddle_weights_are_raw_logits(self):
        routing = with_logits(NaiveGate(2, 3, 2, dialect="paddle"), LOGITS)
        assert rows(routing.expert_N, 2) == [[0, 2], [1, 2]]
        assert rows(routing.weight_N, 2) == [[2.0, 1.0], [3.0, 0.0]]

    def test_there_is_a_bias(self):
        router = NaiveGate(2, 3, 1)
        with torch.no_grad():
            router.bias.copy_(torch.tensor([0.0, 0.0, 50.0]))
        assert router(torch.randn(4, 2)).expert_N.tolist() == [2] * 4
        assert router.bias.abs().max() == 50
        router.reset_parameters()
        assert router.bias.abs().max() <= 2**-0.5


class TestGShard:
    def test_fastmoe_capacity_is_floor_of_ceil_by_the_experts(self):
        # 5 tokens: floor(ceil(1.2 * 5) * 2 / 4) = 3 in training, floor(ceil(2.4 * 5) * 2 / 4) = 6 in evaluation.
        router = GShardGate(5, 4, random_routing=False)
        assert rows(with_logits(router, ALIKE).expert_N, 2) == [[0, 1]] * 3 + [[-1, -1]] * 2
        assert rows(with_logits(router.eval(), ALIKE).expert_N, 2) == [[0, 1]] * 5

    def test_the_floor_can_be_zero(self):
        router = GShardGate(1, 5, random_routing=False)  # floor(2 * 2 / 5)
        assert with_logits(router, [[3.0, 1.0, 0.0, -1.0, -2.0]]).expert_N.tolist() == [-1, -1]

    def test_paddle_capacity_is_not_divided_by_the_experts(self):
        router = GShardGate(5, 4, random_routing=False, dialect="paddle", capacity=(0.5, 0.7))
        assert rows(with_logits(router, ALIKE).expert_N, 2) == [[0, 1]] * 3 + [[-1, -1]] * 2  # ceil(2.5)
        assert rows(with_logits(router.eval(), ALIKE).expert_N, 2) == [[0, 1]] * 4 + [[-1, -1]]  # ceil(3.5)
        usual = GShardGate(5, 4, random_routing=False, dialect="paddle")
        assert rows(with_logits(usual, ALIKE).expert_N, 2) == [[0, 1]] * 5  # ceil(1.2 * 5) hardly ever binds

    def test_assignments_are_served_token_by_token_both_choices_together(self):
        logits = [[1.0, 3.0, 0.0, -1.0], [3.0, 1.0, 0.0, -1.0], [3.0, 0.0, 1.0, -1.0]]
        # 3 tokens: floor(ceil(3.6) * 2 / 4) = 2 places; the second choice of token 0 takes one of expert 0.
        routing = with_logits(GShardGate(3, 4, random_routing=False), logits)
        assert rows(routing.expert_N, 2) == [[1, 0], [0, 1], [-1, 2]]

    def test_a_dropped_choice_leaves_the_others_weight(self):
        logits = [[1.0, 3.0, 0.0, -1.0], [3.0, 1.0, 0.0, -1.0], [3.0, 0.0, 1.0, -1.0]]
        routing = with_logits(GShardGate(3, 4, random_routing=False), logits)
        share = torch.tensor([3.0, 1.0]).softmax(-1).tolist()
        assert rows(routing.weight_N, 2) == [pytest.approx(share), pytest.approx(share), pytest.approx([0, share[1]])]

    def test_fastmoe_compares_twice_the_softmax_with_u_after_pruning(self, monkeypatch):
        second = torch.tensor([3.0, 1.0]).softmax(-1)[1].item()  # 0.1192
        chance(monkeypatch, [2 * second + 1e-3, 2 * second - 1e-3, 0.0, 0.0, 0.0])
        routing = with_logits(GShardGate(5, 4), ALIKE)
        # Token 0 gave its place at expert 1 up, and yet it is used: three places, for tokens 0, 1 and 2.
        assert rows(routing.expert_N, 2) == [[0, -1], [0, 1], [0, 1], [-1, -1], [-1, -1]]
        assert routing.weight_N[0].item() == pytest.approx(1 - second)

    def test_paddle_compares_twice_the_raw_logit_with_u(self, monkeypatch):
        logits = [[3.0, 0.3], [3.0, 0.3], [3.0, -0.1]]
        chance(monkeypatch, [0.61, 0.59, 0.0])
        routing = with_logits(GShardGate(3, 2, dialect="paddle"), logits)
        assert rows(routing.expert_N, 2) == [[0, -1], [0, 1], [0, -1]]
        assert rows(routing.weight_N, 2) == [[3.0, 0.0], [3.0, pytest.approx(0.3)], [3.0, 0.0]]

    @pytest.mark.parametrize("dialect", ["fastmoe", "paddle"])
    def test_chance_decides_in_evaluation_too(self, dialect, monkeypatch):
        chance(monkeypatch, [0.999] * 5)
        logits = [[3.0, 0.1, 0.0, -1.0]] * 5
        routing = with_logits(GShardGate(5, 4, dialect=dialect).eval(), logits)
        assert rows(routing.expert_N, 2) == [[0, -1]] * 5

    def test_padding_takes_no_place(self):
        router = GShardGate(5, 4, random_routing=False)
        with_logits(router, ALIKE)
        mask_T = torch.tensor([False, True, True, True, False])
        assert rows(router(torch.eye(5), mask_T=mask_T).expert_N, 2)[1:4] == [[0, 1]] * 3


class TestSwitch:
    def test_weight_and_capacity(self):
        # 5 tokens: FastMoE ceil(2.4 * 5 / 4) = 3, Paddle ceil(2.4 * 5) = 12.
        p = torch.tensor(ALIKE[0]).softmax(-1)[0].item()
        routing = with_logits(SwitchGate(5, 4).eval(), ALIKE)
        assert routing.expert_N.tolist() == [0, 0, 0, -1, -1]
        assert routing.weight_N.tolist() == pytest.approx([p] * 3 + [0.0] * 2)
        assert with_logits(SwitchGate(5, 4, dialect="paddle").eval(), ALIKE).expert_N.tolist() == [0] * 5

    def test_training_capacity(self):
        assert with_logits(SwitchGate(5, 4, switch_eps=0.0), ALIKE).expert_N.tolist() == [0, 0, -1, -1, -1]  # ceil(1.5)

    def test_noise_is_added_in_training_only(self):
        router, x_TD = SwitchGate(6, 4), torch.randn(500, 6)
        clean = x_TD @ router.weight.T + router.bias
        noise = router(x_TD).logits_TE - clean
        assert noise.min() >= 0.9 - 1e-5
        assert noise.max() <= 1.1 + 1e-5
        assert noise.std().item() == pytest.approx(0.2 / 12**0.5, rel=0.05)
        torch.testing.assert_close(router.eval()(x_TD).logits_TE, clean)

    def test_probabilities_are_those_of_the_noisy_logits(self):
        routing = SwitchGate(6, 4)(torch.randn(5, 6))
        torch.testing.assert_close(routing.probs_TE, routing.logits_TE.softmax(-1))


@pytest.mark.parametrize("capacity", [0, 1, 3, 7])
def test_pruning_is_the_loops(capacity):
    for _ in range(20):
        expert_TK, mask_T = torch.rand(9, 4).topk(2).indices, torch.rand(9) < 0.7
        used, expected = [0] * 4, []
        for experts, is_real in zip(expert_TK.tolist(), mask_T.tolist(), strict=True):
            expected.append([])
            for e in experts:
                expected[-1].append(e if is_real and used[e] < capacity else -1)
                used[e] += is_real
        assert prune(expert_TK, num_experts=4, capacity=capacity, mask_T=mask_T).tolist() == expected


def test_pruning_nothing_and_everything():
    expert_TK = torch.tensor([[0, 1], [1, 2]])
    assert prune(expert_TK, num_experts=3, capacity=2).tolist() == [[0, 1], [1, 2]]
    assert prune(expert_TK, num_experts=3, capacity=0).tolist() == [[-1, -1], [-1, -1]]
    assert prune(expert_TK[:0], num_experts=3, capacity=2).shape == (0, 2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NaiveGate(4, 4, dialect="tutel"), "expected a dialect among fastmoe, paddle, got 'tutel'"),
        (lambda: GShardGate(4, 4, capacity=(0, 1)), r"expected capacity above 0 .* got \(0, 1\)"),
        (lambda: SwitchGate(4, 4, switch_eps=1.0), "expected 0 <= switch_eps < 1, got 1.0"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(UserError, match=message):
        make()


class TestLosses:
    """By hand, from 5 tokens alike: p of expert 0 and 1, E = 4."""

    P = torch.tensor(ALIKE[0]).softmax(-1).tolist()

    def test_switch_counts_kept_tokens_only(self):
        # FastMoE keeps 3 of 5 in evaluation: f = (1, 0, 0, 0), P_0 = 5 p_0 / 3.
        routing = with_logits(SwitchGate(5, 4).eval(), ALIKE)
        assert losses.switch_gate(routing).item() == pytest.approx(4 * 5 * self.P[0] / 3)

    def test_fastmoes_gshard_counts_first_choices_before_they_are_dropped(self):
        routing = with_logits(GShardGate(5, 4, random_routing=False), ALIKE)
        assert (routing.expert_N < 0).sum() == 4
        assert losses.fastmoe_gshard(routing).item() == pytest.approx(4 * self.P[0])

    def test_paddles_gshard_counts_all_choices(self):
        routing = with_logits(GShardGate(5, 4, dialect="paddle"), ALIKE)
        assert losses.paddle_gshard(routing).item() == pytest.approx(4 * (self.P[0] + self.P[1]))

    @pytest.mark.parametrize("name", ["switch_gate", "fastmoe_gshard", "paddle_gshard"])
    def test_padding_counts_nowhere(self, name):
        routing = with_logits(NaiveGate(5, 4), [[3.0, 1.0, 0.0, -1.0]] * 3 + [[0.0, 0.0, 5.0, 9.0]] * 2)
        mask_T = torch.tensor([True, True, True, False, False])
        alone = with_logits(NaiveGate(3, 4), ALIKE[:3])
        masked = losses.LOSSES[name](dataclasses.replace(routing, mask_T=mask_T))
        torch.testing.assert_close(masked, losses.LOSSES[name](alone))

    def test_a_layer_takes_them_by_name(self):
        gate = {"type": "switch", "dialect": "fastmoe"}
        layer = mx.MoEConfig(dim=4, hidden=4, num_experts=3, gate=gate, losses={"switch_gate": 0.1}).build()
        layer(torch.randn(9, 4)).sum().backward()
        assert layer.router.weight.grad.isfinite().all()
