"""Sinkhorn and BASE: balance in training, plain choice in evaluation, weights of the unbalanced scores."""

import pytest
import torch
from torch import nn

import mixtura as mx
from mixtura import UserError
from mixtura.routers import Base, Sinkhorn
from mixtura.routers.balanced import balanced_assignment

# Everybody's best expert is the first.
LOGITS = torch.tensor([[3.0, 0.0], [2.0, 0.0], [1.0, 0.0], [1.0, 0.1]])


def with_logits(make, logits, **options):
    """A router whose logits are its input."""
    E = logits.shape[1]
    router = make(E, E, **options)
    with torch.no_grad():
        router.weight.copy_(torch.eye(E))
    return router


class TestSinkhorn:
    def test_training_takes_the_best_of_the_plan_by_hand(self):
        # With two experts and one price p both columns hold half: the two tokens with the largest l0 - l1 stay.
        router = with_logits(Sinkhorn, LOGITS, k=1)
        assert router(LOGITS).expert_N.tolist() == [0, 0, 1, 1]
        assert router.eval()(LOGITS).expert_N.tolist() == [0, 0, 0, 0]

    def test_the_weights_are_unbalanced_scores(self):
        routing = with_logits(Sinkhorn, LOGITS, k=1)(LOGITS)
        torch.testing.assert_close(routing.weight_N, torch.tensor([3.0, 2.0, 0.0, 0.1]).sigmoid())
        torch.testing.assert_close(routing.probs_TE, LOGITS.sigmoid() / LOGITS.sigmoid().sum(-1, keepdim=True))
        routing = with_logits(Sinkhorn, LOGITS, k=2)(LOGITS)
        torch.testing.assert_close(
            routing.weight_N, LOGITS.softmax(-1).gather(1, routing.expert_N.view(4, 2)).flatten()
        )
        torch.testing.assert_close(routing.probs_TE, LOGITS.softmax(-1))
        routing = with_logits(Sinkhorn, LOGITS, k=1, score="softmax")(LOGITS)
        expected = torch.tensor([3.0, 2.0, -1.0, -0.9]).sigmoid()
        torch.testing.assert_close(routing.weight_N, expected)

    def test_skewed_logits_are_balanced(self):
        router, x = Sinkhorn(8, 4, k=2, gate=nn.Linear(8, 4)), torch.randn(400, 8)
        with torch.no_grad():
            router.gate.bias.copy_(torch.tensor([6.0, 3.0, 0.0, 0.0]))
        assert router(x).counts_E().min() > 150
        assert router.eval()(x).counts_E().min() < 50

    def test_padding_has_no_part_in_the_plan(self):
        router = with_logits(Sinkhorn, LOGITS, k=1)
        padded = torch.cat([LOGITS, torch.tensor([[50.0, 0.0]]).expand(9, 2)])
        routing = router(padded, mask_T=torch.arange(13) < 4)
        assert routing.expert_N[:4].tolist() == [0, 0, 1, 1]

    def test_the_gradient_passes_the_weights_and_not_the_plan(self):
        x = LOGITS.clone().requires_grad_()
        with_logits(Sinkhorn, LOGITS, k=1)(x).weight_N.sum().backward()
        sigmoid = LOGITS.sigmoid()
        chosen = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
        torch.testing.assert_close(x.grad, chosen * sigmoid * (1 - sigmoid))

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"score": "relu"}, 'expected score "sigmoid", "softmax" or None, got \'relu\''),
            ({"iterations": 0}, "expected iterations of at least 1, got 0"),
        ],
    )
    def test_errors(self, options, message):
        with pytest.raises(UserError, match=message):
            Sinkhorn(4, 2, **options)


class TestBase:
    def test_training_balances_and_evaluation_is_greedy(self):
        router = with_logits(Base, LOGITS)
        assert router(LOGITS).expert_N.tolist() == [0, 0, 1, 1]
        assert router.eval()(LOGITS).expert_N.tolist() == [0, 0, 0, 0]

    def test_the_layer_mixes_the_expert_with_the_token_itself(self):
        layer = mx.MoE(router=with_logits(Base, LOGITS), experts=mx.ModuleExperts([nn.Linear(2, 2), nn.Linear(2, 2)]))
        a = torch.tensor([[3.0], [2.0], [0.0], [0.1]]).sigmoid()
        out = torch.cat([layer.experts[0](LOGITS[:2]), layer.experts[1](LOGITS[2:])])
        torch.testing.assert_close(layer(LOGITS), a * out + (1 - a) * LOGITS)

    def test_a_dropped_token_keeps_its_residual(self):
        layer = mx.MoE(
            router=with_logits(Base, LOGITS).eval(),
            experts=mx.ModuleExperts([nn.Linear(2, 2), nn.Linear(2, 2)]),
            capacity=mx.Capacity(fixed=3),
        ).eval()
        torch.testing.assert_close(layer(LOGITS)[3], (1 - torch.tensor(1.0).sigmoid()) * LOGITS[3])

    @pytest.mark.parametrize(("tokens", "experts"), [(12, 4), (13, 4), (15, 4), (3, 5), (1, 4), (7, 1)])
    def test_counts_differ_by_at_most_one(self, tokens, experts):
        counts = Base(6, experts, init_std=3.0)(torch.randn(tokens, 6)).counts_E()
        assert counts.sum() == tokens
        assert counts.max() - counts.min() <= 1

    def test_one_token_goes_where_it_wants(self):
        router, x = Base(6, 5, init_std=3.0), torch.randn(1, 6)
        assert router(x).expert_N.item() == router.logits(x).argmax().item()

    def test_padding_counts_for_no_expert(self):
        mask = torch.tensor([True, False, True] * 5)
        routing = Base(6, 4, init_std=3.0)(torch.randn(15, 6), mask_T=mask)
        assert sorted(routing.expert_N[mask].bincount(minlength=4).tolist()) == [2, 2, 3, 3]

    def test_equal_tokens_are_spread(self):
        counts = balanced_assignment(torch.randn(1, 4).expand(20, 4), epsilon=0.1, rounds=64).bincount()
        assert counts.tolist() == [5, 5, 5, 5]

    def test_the_scale_of_the_scores_does_not_matter(self):
        score = torch.randn(64, 8)
        small = balanced_assignment(1e-3 * score, epsilon=0.1, rounds=64)
        large = balanced_assignment(1e3 * score, epsilon=0.1, rounds=64)
        totals = [score.gather(1, expert.unsqueeze(1)).sum() for expert in (small, large)]
        torch.testing.assert_close(*totals, rtol=1e-3, atol=0)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"epsilon": 0.0}, "expected epsilon above 0, got 0.0"),
            ({"rounds": 0}, "expected rounds of at least 1, got 0"),
        ],
    )
    def test_errors(self, options, message):
        with pytest.raises(UserError, match=message):
            Base(4, 2, **options)


@pytest.mark.parametrize("make", [Sinkhorn, Base])
def test_a_replay_repeats_the_balanced_choice_in_evaluation_too(make):
    layer = mx.MoE(router=with_logits(make, LOGITS), experts=mx.GroupedMLP(num_experts=2, dim=2, hidden=4))
    with mx.record(layer) as log:
        layer(LOGITS)
    with mx.replay(layer.eval(), log), mx.record(layer) as again:
        layer(LOGITS)
    assert again[""][0].routing.expert_N.tolist() == [0, 0, 1, 1]
