"""Expert choice: arrays by hand, padding, replay."""

import math

import pytest
import torch
from torch import nn

import mixtura as mx
from mixtura import UserError
from mixtura.routers import ExpertChoice


def with_logits(logits, **options):
    """A router and tokens whose logits are these."""
    logits = torch.tensor(logits)
    router = ExpertChoice(logits.shape[1], logits.shape[1], **options)
    with torch.no_grad():
        router.weight.copy_(torch.eye(logits.shape[1]))
    return router, logits


def test_each_expert_takes_its_best_tokens_by_probability():
    # The softmax over experts ranks tokens 1, 0, 2 for expert 0 and 2, 0, 1 for expert 1, unlike the logits themselves.
    logits = [[3.0, 3.0], [1.0, 0.0], [4.0, 5.0]]
    router, x = with_logits(logits, k=1)
    routing = router(x)
    assert routing.token_N.view(2, 2).tolist() == [[1, 0], [2, 0]]  # C = ceil(3 * 1 / 2)
    assert routing.expert_N.view(2, 2).tolist() == [[0, 0], [1, 1]]
    sigmoid = 1 / (1 + math.exp(-1))
    torch.testing.assert_close(routing.weight_N, torch.tensor([sigmoid, 0.5, sigmoid, 0.5]))
    torch.testing.assert_close(routing.probs_TE, x.softmax(-1))
    assert routing.choices is None
    assert routing.counts_E().tolist() == [2, 2]


@pytest.mark.parametrize(
    ("tokens", "options", "rows"),
    [
        (10, {"k": 2}, 5),
        (11, {"k": 2}, 6),
        (10, {"k": 1, "capacity_factor": 1.25}, 4),
        (10, {"k": 2, "multiple_of": 4}, 8),
        (3, {"k": 2, "multiple_of": 4}, 3),  # never more than there are tokens
        (10, {"k": 4}, 10),
        (1, {"k": 1}, 1),
        (0, {"k": 2}, 0),
    ],
)
def test_how_many_an_expert_takes(tokens, options, rows):
    assert ExpertChoice(6, 4, **options)(torch.randn(tokens, 6)).counts_E().tolist() == [rows] * 4


def test_padding_is_never_taken():
    router, x = with_logits([[9.0, 0.0], [1.0, 0.0], [0.0, 9.0], [0.0, 1.0]], k=1)
    routing = router(x, mask_T=torch.tensor([False, True, False, True]))
    taken = {(t, e) for t, e in zip(routing.token_N.tolist(), routing.expert_N.tolist(), strict=True) if e >= 0}
    assert taken == {(1, 0), (3, 0), (1, 1), (3, 1)}
    # With fewer real tokens than places, the other places stay empty.
    routing = router(x, mask_T=torch.tensor([False, True, False, False]))
    assert sorted(routing.expert_N.tolist()) == [-1, -1, 0, 1]


def test_a_replay_takes_the_same_tokens_with_live_weights():
    layer = mx.MoE(router=ExpertChoice(6, 4, 2, init_std=1.0), experts=mx.GroupedMLP(num_experts=4, dim=6, hidden=8))
    x, mask = torch.randn(9, 6), torch.arange(9) < 7
    with mx.record(layer) as log:
        layer(x, mask=mask)
    nn.init.normal_(layer.router.weight)
    with mx.record(layer) as free:
        layer(x, mask=mask)
    with mx.replay(layer, log), mx.record(layer) as again:
        layer(x, mask=mask).sum().backward()
    first, replayed = log[""][0].routing, again[""][0].routing
    assert torch.equal(replayed.token_N, first.token_N)
    assert torch.equal(replayed.expert_N, first.expert_N)
    assert not torch.equal(free[""][0].routing.token_N, first.token_N)
    columns = torch.arange(4).repeat_interleave(len(replayed.token_N) // 4)
    torch.testing.assert_close(replayed.weight_N, replayed.probs_TE[replayed.token_N, columns])
    assert layer.router.weight.grad.norm() > 0


@pytest.mark.parametrize("threads", [1, 2])
def test_adding_rows_without_a_fixed_number_per_token_gives_the_same_bits(threads):
    layer = mx.MoE(router=ExpertChoice(32, 8, 2), experts=mx.GroupedMLP(num_experts=8, dim=32, hidden=16))
    before, results = torch.get_num_threads(), []
    torch.set_num_threads(threads)
    try:
        for _ in range(3):
            x = torch.linspace(-3, 3, 3000 * 32).sin().view(3000, 32).requires_grad_()
            y = layer(x)
            y.square().sum().backward()
            results.append((y.detach(), x.grad))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for result in results[1:] for a, b in zip(result, results[0], strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"capacity_factor": 0.0}, "expected capacity_factor above 0, got 0.0; an expert would take no token"),
        ({"capacity_factor": torch.inf}, "expected capacity_factor above 0, got inf"),
        ({"multiple_of": 0}, "expected multiple_of of at least 1, got 0"),
        ({"k": 5}, "expected 1 <= k <= num_experts, got k=5"),
    ],
)
def test_errors(options, message):
    with pytest.raises(UserError, match=message):
        ExpertChoice(6, 4, **options)
