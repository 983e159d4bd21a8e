"""GShard against algorithm 1."""

import pytest
import torch

import mixtura as mx
from mixtura import UserError
from mixtura.dispatch import dispatch
from mixtura.routers.base import both_choices
from mixtura.routers.gshard import GShard
from tests.routers.tables import of_probs, rows

PROBS = [[0.6, 0.3, 0.1], [0.1, 0.1001, 0.7999], [0.45, 0.5, 0.05]]


def test_weights_are_normalised_over_the_two():
    routing = of_probs(GShard(3, 3).eval(), PROBS)
    assert rows(routing.expert_N, 2) == [[0, 1], [2, 1], [1, 0]]
    expected = torch.tensor([[2 / 3, 1 / 3], [0.7999 / 0.9, 0.1001 / 0.9], [0.5 / 0.95, 0.45 / 0.95]])
    torch.testing.assert_close(routing.weight_N.view(3, 2), expected)
    assert (routing.by_rank, routing.partial) == (True, False)


def test_a_second_choice_that_is_given_up_leaves_the_first_weight_alone(monkeypatch):
    # 2 g_2 is 2/3, 0.2224 and 0.947: of these u the first and the last are below it.
    monkeypatch.setattr(torch, "rand_like", lambda like: torch.tensor([0.6, 0.23, 0.94]))
    routing = of_probs(GShard(3, 3), PROBS)
    assert rows(routing.expert_N, 2) == [[0, 1], [2, -1], [1, 0]]
    assert rows(routing.weight_N, 2)[1] == pytest.approx([0.7999 / 0.9, 0.0])
    assert routing.partial


def test_the_second_is_kept_with_probability_2_g2():
    T = 20_000
    router = GShard(1, 3)
    with torch.no_grad():
        router.weight.copy_(torch.tensor([[0.7], [0.2], [0.1]]).log())
    kept = (router(torch.ones(T, 1)).expert_N.view(T, 2)[:, 1] >= 0).float().mean().item()
    assert kept == pytest.approx(2 * 0.2 / 0.9, abs=0.015)


@pytest.mark.parametrize(
    ("random_second", "training", "gives_up"),
    [("training", True, True), ("training", False, False), ("always", False, True), ("never", True, False)],
)
def test_when_chance_decides(random_second, training, gives_up):
    router = GShard(4, 5, random_second=random_second, init_std=2.0).train(training)
    assert (router(torch.randn(200, 4)).expert_N < 0).any() == gives_up


def test_first_choices_are_served_before_second_ones():
    routing = of_probs(GShard(3, 3, random_second="never"), [[0.3, 0.6, 0.1], [0.6, 0.3, 0.1], [0.6, 0.1, 0.3]])
    # Expert 0 is the second choice of token 0 and the first of tokens 1 and 2, expert 1 of tokens 0 and 1.
    kept = dispatch(routing, torch.zeros(3, 3), capacity=2)
    assert kept.counts_E.tolist() == [2, 2, 1]
    assert kept.index.token_N[:5].tolist() == [1, 2, 0, 1, 2]


def test_a_single_expert_has_no_second_choice():
    routing = GShard(4, 1)(torch.randn(3, 4))
    assert (routing.expert_N.tolist(), routing.weight_N.tolist()) == ([0, 0, 0], [1.0, 1.0, 1.0])


def test_both_choices_fills_in_for_either():
    logits_TE = torch.tensor([[3.0, 1.0, 2.0]] * 3)
    assert both_choices(logits_TE, torch.tensor([[0, -1], [-1, 2], [1, 2]])).tolist() == [[0, 2], [0, 2], [1, 2]]


def test_bad_input():
    with pytest.raises(UserError, match="expected random_second among training, always, never, got 'maybe'"):
        GShard(4, 2, random_second="maybe")
    with pytest.raises(UserError, match="expected k=2 with router='gshard', got k=1"):
        mx.MoEConfig(dim=4, hidden=4, num_experts=4, k=1, router="gshard").build()
