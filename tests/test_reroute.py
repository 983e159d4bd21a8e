"""Overflow that is re-routed: arrays computed by hand, and properties of any routing."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mixtura.dispatch import dispatch, reroute
from tests.contracts.loop import serve
from tests.routings import make_routing
from tests.test_dispatch import kept, send

# Expert 0 is everybody's first, expert 1 the second of tokens 0 and 1, expert 2 that of token 2.
PROBS = [[0.6, 0.3, 0.1], [0.5, 0.4, 0.1], [0.7, 0.1, 0.2]]


def choices(routing):
    return routing.expert_N.view(routing.num_tokens, -1).tolist()


def one_choice(**options):
    return make_routing([[0]] * 3, num_experts=3, probs=PROBS, weights=[[0.6], [0.5], [0.7]], **options)


class TestByHand:
    def test_the_next_best_expert_with_room_and_its_probability(self):
        routing = one_choice()
        moved = reroute(routing, capacity=1)
        assert choices(moved) == [[0], [1], [2]]
        torch.testing.assert_close(moved.weight_N, torch.tensor([0.6, 0.4, 0.2]))
        rows = send(routing, capacity=1, policy="reroute")
        assert kept(rows, routing) == [(0, 0), (1, 1), (2, 2)]
        torch.testing.assert_close(rows.weight_N, torch.tensor([0.6, 0.4, 0.2]))

    def test_the_next_after_the_next_where_that_is_full_too(self):
        routing = make_routing([[0]] * 3, num_experts=3, probs=[PROBS[0], PROBS[1], PROBS[1]])
        moved = reroute(routing, capacity=1)
        assert choices(moved) == [[0], [1], [2]]
        torch.testing.assert_close(moved.weight_N, torch.tensor([1.0, 0.4 / 0.5, 0.1 / 0.5]))

    def test_those_who_asked_for_an_expert_come_before_those_who_were_sent(self):
        routing = make_routing([[0], [0], [1]], num_experts=3, probs=[PROBS[0], PROBS[1], PROBS[1]])
        assert choices(reroute(routing, capacity=1)) == [[0], [2], [1]]

    def test_no_token_gets_an_expert_that_it_has(self):
        routing = make_routing([[0, 1], [0, 1], [0, 1]], num_experts=4, probs=[[0.4, 0.3, 0.2, 0.1]] * 3)
        assert choices(reroute(routing, capacity=2)) == [[0, 1], [0, 1], [2, 3]]

    def test_without_room_it_is_lost(self):
        routing = make_routing([[0], [0], [0]], num_experts=2, probs=[[0.9, 0.1]] * 3)
        moved = reroute(routing, capacity=1)
        assert choices(moved) == [[0], [1], [-1]]
        assert send(routing, capacity=1, policy="reroute").index.slot_TK.tolist() == [[0], [1], [-1]]

    def test_the_callers_score_goes_first(self):
        routing = one_choice()
        rows = send(routing, capacity=1, policy="reroute", priority_T=torch.tensor([0.0, 1.0, 2.0]))
        assert sorted(kept(rows, routing)) == [(0, 2), (1, 1), (2, 0)]

    def test_padding_takes_no_room_and_is_not_moved(self):
        routing = one_choice(mask=[False, True, True])
        assert kept(send(routing, capacity=1, policy="reroute"), routing) == [(1, 0), (2, 2)]

    def test_null_experts_and_none_stay(self):
        probs = torch.tensor([[0.4, 0.3, 0.3]] * 3)
        routing = make_routing([[0, 2], [0, -1], [0, 2]], num_experts=3, probs=probs.tolist())
        routing = type(routing)(**{**vars(routing), "null_experts": 1, "partial": True})
        assert choices(reroute(routing, capacity=1)) == [[0, 2], [1, -1], [-1, 2]]

    def test_without_a_capacity_it_is_dropless(self):
        assert send(one_choice(), policy="reroute").index.dropless

    @pytest.mark.parametrize("tokens", [0, 1])
    def test_no_tokens_and_one(self, tokens):
        routing = make_routing([[1]] * tokens, num_experts=2)
        rows = send(routing, capacity=1, policy="reroute")
        assert rows.counts_E.tolist() == [0, tokens]

    def test_different_numbers_of_choices(self):
        routing = make_routing([[0, 1], [], [0]], num_experts=3, probs=PROBS, regular=False)
        assert kept(send(routing, capacity=1, policy="reroute"), routing) == [(0, 0), (0, 1), (2, 2)]


def test_the_gradient_flows_through_the_weight_and_both_probabilities():
    routing = one_choice()
    routing.weight_N.requires_grad_()
    routing.probs_TE.requires_grad_()
    moved = reroute(routing, capacity=1)
    moved.weight_N.sum().backward()
    torch.testing.assert_close(routing.weight_N.grad, torch.tensor([1.0, 0.4 / 0.5, 0.2 / 0.7]))
    expected = torch.tensor([[0.0, 0.0, 0.0], [-0.4 / 0.5, 1.0, 0.0], [-0.2 / 0.7, 0.0, 1.0]])
    torch.testing.assert_close(routing.probs_TE.grad, expected)


def test_a_probability_of_zero_gives_no_nan():
    routing = make_routing([[0], [0], [1]], num_experts=3, probs=[[0.0, 0.0, 1.0]] * 3, weights=[[0.0]] * 3)
    routing.weight_N.requires_grad_()
    routing.probs_TE.requires_grad_()
    moved = reroute(routing, capacity=1)
    moved.weight_N.sum().backward()
    assert moved.weight_N.isfinite().all()
    assert routing.weight_N.grad.isfinite().all()
    assert routing.probs_TE.grad.isfinite().all()


def test_unwritten_memory_is_not_read(poison):
    rows = send(one_choice(), capacity=1, policy="reroute", priority_T=torch.tensor([0.0, 1.0, 2.0]))
    assert sorted(kept(rows, one_choice())) == [(0, 2), (1, 1), (2, 0)]


@st.composite
def routings(draw):
    E, T = draw(st.integers(1, 5)), draw(st.integers(0, 8))
    K = draw(st.integers(1, E))
    regular = draw(st.booleans())
    sizes = [K if regular else draw(st.integers(0, E)) for _ in range(T)]
    picked = [draw(st.permutations(range(E)))[:size] for size in sizes]
    # A permutation has no equals, so that "the best" is one for every loop.
    probs = [[(1 + rank) / 8 for rank in draw(st.permutations(range(E)))] for _ in range(T)]
    mask = draw(st.none() | st.lists(st.booleans(), min_size=T, max_size=T))
    if T == 0:
        return make_routing([], num_experts=E, mask=mask)
    return make_routing(picked, num_experts=E, probs=probs, mask=mask, regular=regular)


@given(routings(), st.integers(1, 6))
@settings(max_examples=200)
def test_any_routing(routing, capacity):
    plain = send(routing, capacity=capacity)
    rows = send(routing, capacity=capacity, policy="reroute")
    before, after = kept(plain, routing), kept(rows, routing)
    assert set(before) <= set(after)  # who is kept is not moved
    assert len(set(after)) == len(after)  # no expert twice for a token
    assert (rows.counts_E <= capacity).all()
    real = [True] * routing.num_tokens if routing.mask_T is None else routing.mask_T.tolist()
    asked = [t for t in routing.token_N.tolist() if real[t]]
    assert len(after) <= len(asked)
    for t in set(asked):
        has = {e for token, e in after if token == t}
        free = [e for e, count in enumerate(rows.counts_E.tolist()) if count < capacity and e not in has]
        assert len(has) == asked.count(t) or not free  # nothing is lost while a usable row is free
    if routing.mask_T is None and routing.num_tokens:
        factor = capacity * routing.num_experts / max(len(asked), 1)
        expected = serve(routing, factor=factor, policy="reroute") if asked else []
        assert sorted(after) == sorted((int(routing.token_N[n]), e) for n, e in expected)


def test_rows_of_a_rerouted_batch_stand_in_the_order_of_service():
    routing = one_choice()
    rows = dispatch(routing, torch.arange(3.0).unsqueeze(1), capacity=2, policy="reroute")
    assert rows.counts_E.tolist() == [2, 0, 1]
    assert rows.gather().flatten().tolist() == [0.0, 1.0, 2.0]
