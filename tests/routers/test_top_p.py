"""TopP: the fewest experts that reach the threshold."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import mixtura as mx
from mixtura import UserError
from mixtura.routers.top_p import TopP
from tests.routers.tables import of_probs, rows

PROBS = [[0.6, 0.3, 0.1], [0.1, 0.2, 0.7], [0.36, 0.34, 0.3]]


def test_by_hand():
    routing = of_probs(TopP(3, 3, p=0.65), PROBS)
    assert rows(routing.expert_N, 3) == [[0, 1, -1], [2, -1, -1], [0, 1, -1]]
    torch.testing.assert_close(
        routing.weight_N.view(3, 3), torch.tensor([[0.6, 0.3, 0.0], [0.7, 0.0, 0.0], [0.36, 0.34, 0.0]])
    )
    assert routing.partial
    assert routing.counts_E().tolist() == [2, 2, 1]


def test_at_most_max_k():
    routing = of_probs(TopP(3, 3, p=0.99, max_k=2), PROBS)
    assert rows(routing.expert_N, 2) == [[0, 1], [2, 1], [0, 1]]


def test_renormalised():
    routing = of_probs(TopP(3, 3, p=0.65, renormalize=True), PROBS)
    torch.testing.assert_close(routing.weight_N.view(3, 3)[0], torch.tensor([2 / 3, 1 / 3, 0.0]))


@given(st.integers(1, 6), st.floats(0.01, 1.0), st.integers(0, 1000))
def test_no_smaller_set_would_do(num_experts, p, seed):
    torch.manual_seed(seed)
    routing = TopP(3, num_experts, p=p, init_std=1.0)(torch.randn(5, 3))
    for probs, chosen in zip(routing.probs_TE.tolist(), rows(routing.expert_N, num_experts), strict=True):
        chosen = [e for e in chosen if e >= 0]
        best = sorted(probs, reverse=True)
        assert sorted((probs[e] for e in chosen), reverse=True) == best[: len(chosen)]
        assert sum(best[: len(chosen) - 1]) < p + 1e-6
        assert len(chosen) == num_experts or sum(best[: len(chosen)]) >= p - 1e-6


def test_unused_choices_are_not_computed():
    layer = mx.MoEConfig(dim=3, hidden=4, num_experts=3, router="top_p", router_options={"p": 0.65}).build()
    of_probs(layer.router, PROBS)
    with mx.record(layer) as log:
        layer(torch.eye(3))
    assert log[""][0].kept_E.tolist() == [2, 2, 1]
    assert log[""][0].dropped_share() == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"p": 0.0}, "expected 0 < p <= 1, got 0.0"),
        ({"p": 1.5}, "expected 0 < p <= 1, got 1.5"),
        ({"max_k": 4}, "expected 1 <= max_k <= num_experts, got max_k=4 with num_experts=3"),
        ({"max_k": 0}, "got max_k=0"),
    ],
)
def test_bad_input(options, message):
    with pytest.raises(UserError, match=message):
        TopP(3, 3, **options)


def test_print_shows_the_threshold():
    assert repr(TopP(3, 4, p=0.5, max_k=2)) == "TopP(dim=3, num_experts=4, k=2, p=0.5)"
