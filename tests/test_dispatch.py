"""Dispatch: arrays computed by hand, and properties of any routing."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mixtura as mx
from mixtura import UserError
from mixtura.dispatch import Capacity, dispatch
from mixtura.kernels.grouping import expert_capacity
from tests.routings import make_routing


def kept(rows, routing):
    """Pairs (token, expert) of the kept assignments, in the order of the rows; the tail is left out."""
    expert_N = torch.arange(routing.num_experts).repeat_interleave(rows.counts_E)
    assert rows.index.token_N.shape == rows.weight_N.shape == routing.token_N.shape
    return list(zip(rows.index.token_N.tolist(), expert_N.tolist(), strict=False))


def send(routing, **options):
    return dispatch(routing, torch.zeros(routing.num_tokens, 1), **options)


class TestExpertCapacity:
    @pytest.mark.parametrize(
        ("arguments", "rows"),
        [
            ({"num_tokens": 8, "num_experts": 4, "k": 1, "factor": 1.0}, 2),
            ({"num_tokens": 8, "num_experts": 4, "k": 2, "factor": 1.0}, 4),
            ({"num_tokens": 9, "num_experts": 4, "k": 1, "factor": 1.0}, 3),
            ({"num_tokens": 8, "num_experts": 4, "k": 1, "factor": 1.25}, 3),
            # In binary, 10 * 1.1 is a little above 11, and 3 * 1.4 / 7 ... a little above or below its value.
            ({"num_tokens": 10, "num_experts": 1, "k": 1, "factor": 1.1}, 11),
            ({"num_tokens": 100, "num_experts": 1, "k": 1, "factor": 1.1}, 110),
            ({"num_tokens": 30, "num_experts": 3, "k": 1, "factor": 1.1}, 11),
            ({"num_tokens": 9, "num_experts": 1, "k": 1, "factor": 1.0, "multiple_of": 4}, 12),
            ({"num_tokens": 8, "num_experts": 1, "k": 1, "factor": 1.0, "multiple_of": 4}, 8),
            ({"num_tokens": 1, "num_experts": 64, "k": 1, "factor": 1.0}, 1),
            ({"num_tokens": 1, "num_experts": 64, "k": 1, "factor": 1.0, "minimum": 4}, 4),
            ({"num_tokens": 100, "num_experts": 1, "k": 1, "factor": 1.0, "maximum": 7}, 7),
            ({"num_tokens": 0, "num_experts": 4, "k": 2, "factor": 1.0}, 1),
        ],
    )
    def test_values(self, arguments, rows):
        assert expert_capacity(arguments.pop("num_tokens"), **arguments) == rows

    @given(
        st.integers(1, 10_000), st.integers(1, 64), st.integers(1, 8), st.integers(1, 40), st.sampled_from([1, 4, 8])
    )
    def test_the_factor_in_tenths_is_exact(self, tokens, experts, k, tenths, multiple):
        exact = -(-tokens * k * tenths // (10 * experts))
        rounded = -(-exact // multiple) * multiple
        got = expert_capacity(tokens, num_experts=experts, k=k, factor=tenths / 10, multiple_of=multiple)
        assert got == max(rounded, 1)


class TestCapacity:
    """The value: 20 assignments over 4 experts have an even share of 5."""

    @pytest.mark.parametrize(
        ("capacity", "rows"),
        [
            (Capacity(), None),
            (Capacity(factor=1.0), 5),
            (Capacity(factor=1.25), 7),
            (Capacity(factor=1.05), 6),  # V-MoE: 1.05 and multiples of 4
            (Capacity(factor=1.05, multiple_of=4), 8),
            (Capacity(factor=1.6, multiple_of=4), 8),
            (Capacity(factor=0.1), 1),
            (Capacity(factor=0.1, minimum=3), 3),
            (Capacity(factor=2.0, maximum=6), 6),
            (Capacity(factor=1.05, multiple_of=4, maximum=6), 6),
            (Capacity(fixed=3), 3),
            (Capacity(fixed=300), 300),
            (Capacity(maximum=9), 9),  # automatic: as many as come, up to 9
        ],
        ids=repr,
    )
    def test_rows(self, capacity, rows):
        assert capacity.rows(20, num_experts=4) == rows

    def test_automatic_keeps_all_below_its_maximum(self):
        routing = make_routing([[0]] * 3 + [[1]], num_experts=2)
        automatic = Capacity(maximum=3).rows(4, num_experts=2)
        assert send(routing, capacity=automatic).counts_E.tolist() == [3, 1]
        tight = Capacity(maximum=2).rows(4, num_experts=2)
        assert send(routing, capacity=tight).counts_E.tolist() == [2, 1]

    def test_fixed_does_not_follow_the_batch(self):
        assert {Capacity(fixed=7).rows(n, num_experts=4) for n in (1, 20, 4000)} == {7}

    def test_training_and_evaluation_have_different_ones(self):
        layer = mx.MoE(
            router=mx.routers.Switch(4, 2),
            experts=mx.GroupedMLP(num_experts=2, dim=4, hidden=4),
            capacity=Capacity(factor=1.0, multiple_of=2),
            eval_capacity=Capacity(maximum=7),
        )
        x = torch.ones(10, 4)  # equal tokens: one expert is asked by all
        for training, expected in ((True, 6), (False, 7)):
            with mx.record(layer.train(training)) as log:
                layer(x)
            assert log[""][0].kept_E.sum() == expected

    def test_repr_shows_what_was_changed(self):
        assert repr(Capacity()) == "Capacity()"
        assert repr(Capacity(factor=1.25, multiple_of=4)) == "Capacity(factor=1.25, multiple_of=4)"

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"factor": 0.0}, "expected capacity_factor above 0, or None for dropless, got 0.0"),
            ({"factor": -1.0}, "expected capacity_factor above 0, or None for dropless, got -1.0"),
            ({"factor": float("nan")}, "expected capacity_factor above 0, or None for dropless, got nan"),
            ({"factor": 1.0, "fixed": 3}, "expected a capacity factor or a fixed capacity, got 1.0 and 3"),
            ({"fixed": 0}, "expected a capacity with fixed of at least 1, got 0; 0 rows would drop all"),
            ({"multiple_of": 0}, "expected a capacity with multiple_of of at least 1, got 0"),
            ({"minimum": 0}, "expected a capacity with minimum of at least 1, got 0"),
            ({"maximum": 0}, "expected a capacity with maximum of at least 1, got 0; 0 rows would drop all"),
            ({"minimum": 5, "maximum": 4}, "expected a capacity with minimum <= maximum, got 5 and 4"),
        ],
    )
    def test_errors(self, options, message):
        with pytest.raises(UserError, match=message):
            Capacity(**options)


class TestDropless:
    def test_groups_by_expert_in_token_order(self):
        routing = make_routing([[2, 0], [0, 2], [2, 1]], num_experts=4, weights=[[0.9, 0.1], [0.8, 0.2], [0.7, 0.3]])
        rows = send(routing)
        assert kept(rows, routing) == [(0, 0), (1, 0), (2, 1), (0, 2), (1, 2), (2, 2)]
        assert rows.counts_E.tolist() == [2, 1, 3, 0]
        assert rows.index.slot_TK.tolist() == [[3, 0], [1, 4], [5, 2]]
        torch.testing.assert_close(rows.weight_N, torch.tensor([0.1, 0.8, 0.3, 0.9, 0.2, 0.7]))
        assert rows.index.dropless
        assert rows.index.num_tokens == 3

    def test_different_numbers_of_choices_have_no_slots(self):
        routing = make_routing([[2, 0, 1], [], [2]], num_experts=3, regular=False)
        rows = send(routing)
        assert kept(rows, routing) == [(0, 0), (0, 1), (0, 2), (2, 2)]
        assert rows.index.slot_TK is None

    def test_the_tokens_pass_through_untouched(self):
        x_TD = torch.randn(2, 3)
        assert dispatch(make_routing([[0], [1]], num_experts=2), x_TD).x_TD is x_TD

    def test_no_tokens(self):
        routing = make_routing([], num_experts=3)
        rows = send(routing)
        assert rows.counts_E.tolist() == [0, 0, 0]
        assert rows.index.token_N.shape == (0,)


class TestDrop:
    def test_the_first_in_token_order_are_kept(self):
        routing = make_routing([[0, 1], [1, 0], [0, 1], [0, 2]], num_experts=3)
        rows = send(routing, capacity=2)
        # Expert 0 is asked by tokens 0 (first choice), 1 (second), 2, 3; expert 1 by 0 (second), 1 (first), 2 (second).
        assert kept(rows, routing) == [(0, 0), (1, 0), (0, 1), (1, 1), (3, 2)]
        assert rows.counts_E.tolist() == [2, 2, 1]
        assert rows.index.slot_TK.tolist() == [[0, 2], [3, 1], [-1, -1], [-1, 4]]
        assert not rows.index.dropless

    def test_room_for_all_keeps_all(self):
        routing = make_routing([[0, 1], [1, 0]], num_experts=2)
        assert kept(send(routing, capacity=2), routing) == kept(send(routing), routing)

    def test_all_to_one_expert(self):
        routing = make_routing([[1]] * 5, num_experts=3)
        rows = send(routing, capacity=2)
        assert kept(rows, routing) == [(0, 1), (1, 1)]
        assert rows.index.slot_TK.flatten().tolist() == [0, 1, -1, -1, -1]


class TestPriority:
    def test_every_first_choice_before_any_second(self):
        # Token 0 is by far the most certain, yet its second choice of expert 1 waits for token 1's first choice.
        routing = make_routing([[0, 1], [1, 0]], num_experts=2, weights=[[0.99, 0.98], [0.02, 0.01]])
        rows = send(routing, capacity=1, policy="priority")
        assert kept(rows, routing) == [(0, 0), (1, 1)]
        assert rows.index.slot_TK.tolist() == [[0, -1], [1, -1]]

    def test_within_a_rank_the_largest_gate_goes_first(self):
        weights = [[0.5, 0.1], [0.9, 0.1], [0.7, 0.3], [0.6, 0.4]]
        routing = make_routing([[0, 1], [0, 1], [0, 1], [1, 0]], num_experts=2, weights=weights)
        rows = send(routing, capacity=2, policy="priority")
        # Expert 0: first choices 1 (0.9), 2 (0.7), 0 (0.5). Expert 1: first choice 3, then second choices by the
        # tokens' largest gates: 1 (0.9).
        assert sorted(kept(rows, routing)) == [(1, 0), (1, 1), (2, 0), (3, 1)]

    def test_the_second_choices_are_ranked_by_the_tokens_largest_gate(self):
        # Token 1's own second weight is larger, but token 0's largest weight is.
        routing = make_routing([[0, 2], [1, 2]], num_experts=3, weights=[[0.9, 0.1], [0.6, 0.4]])
        assert kept(send(routing, capacity=1, policy="priority"), routing) == [(0, 0), (1, 1), (0, 2)]

    def test_the_callers_score_replaces_the_gate(self):
        routing = make_routing([[0], [0], [0]], num_experts=1, weights=[[0.9], [0.8], [0.7]])
        urgency = torch.tensor([0.0, 1.0, 2.0])
        rows = send(routing, capacity=2, policy="priority", priority_T=urgency)
        assert sorted(kept(rows, routing)) == [(1, 0), (2, 0)]

    def test_equal_scores_keep_the_token_order(self):
        routing = make_routing([[0, 1]] * 6, num_experts=2)
        assert kept(send(routing, capacity=3, policy="priority"), routing) == [
            (t, e) for e in range(2) for t in range(3)
        ]

    def test_different_numbers_of_choices_go_by_score_alone(self):
        routing = make_routing([[0, 1], [1], [1]], num_experts=2, weights=[[0.2, 0.9], [0.5], [0.6]], regular=False)
        rows = send(routing, capacity=1, policy="priority")
        assert kept(rows, routing) == [(0, 0), (0, 1)]

    def test_without_a_capacity_it_is_dropless(self):
        routing = make_routing([[0], [0]], num_experts=2)
        assert send(routing, policy="priority").index.dropless


class TestMask:
    @pytest.mark.parametrize("capacity", [None, 10])
    def test_padding_is_routed_nowhere(self, capacity):
        routing = make_routing([[0, 1], [1, 0], [0, 1]], num_experts=2, mask=[True, False, True])
        rows = send(routing, capacity=capacity)
        assert kept(rows, routing) == [(0, 0), (2, 0), (0, 1), (2, 1)]
        assert rows.index.slot_TK.tolist() == [[0, 2], [-1, -1], [1, 3]]

    @pytest.mark.parametrize("policy", ["drop", "priority"])
    def test_padding_takes_no_room(self, policy):
        routing = make_routing([[0], [0], [0]], num_experts=2, mask=[False, True, True], weights=[[0.9], [0.5], [0.4]])
        assert kept(send(routing, capacity=1, policy=policy), routing) == [(1, 0)]

    def test_all_padding(self):
        rows = send(make_routing([[0], [1]], num_experts=2, mask=[False, False]))
        assert rows.counts_E.tolist() == [0, 0]
        assert rows.index.slot_TK.tolist() == [[-1], [-1]]


def test_errors_say_what_was_expected():
    routing = make_routing([[0]], num_experts=1)
    with pytest.raises(UserError, match=r"expected a policy among drop, priority, reroute, got 'best'"):
        send(routing, policy="best")
    with pytest.raises(UserError, match=r"at least 1 row per expert, got 0; None means dropless"):
        send(routing, capacity=0)


def test_the_gradient_reaches_the_weights_that_are_kept():
    routing = make_routing([[0], [0], [1]], num_experts=2, weights=[[0.5], [0.6], [0.7]])
    routing.weight_N.requires_grad_()
    rows = send(routing, capacity=1)
    rows.weight_N[: int(rows.counts_E.sum())].sum().backward()
    assert routing.weight_N.grad.tolist() == [1.0, 0.0, 1.0]


@st.composite
def routings(draw):
    E, T = draw(st.integers(1, 5)), draw(st.integers(0, 10))
    K = draw(st.integers(1, E))
    regular = draw(st.booleans())
    sizes = [K if regular else draw(st.integers(0, E)) for _ in range(T)]
    choices = [draw(st.permutations(range(E)))[:size] for size in sizes]
    weights = [[draw(st.sampled_from([0.1, 0.3, 0.5, 0.9])) for _ in row] for row in choices]
    mask = draw(st.none() | st.lists(st.booleans(), min_size=T, max_size=T))
    return make_routing(choices, num_experts=E, weights=weights, mask=mask, regular=regular)


@given(routings(), st.none() | st.integers(1, 6), st.sampled_from(["drop", "priority"]))
@settings(max_examples=150)
def test_any_routing(routing, capacity, policy):
    rows = send(routing, capacity=capacity, policy=policy)
    N = int(rows.counts_E.sum())
    asked = routing.counts_E()
    expected = asked if capacity is None else asked.clamp(max=capacity)
    assert torch.equal(rows.counts_E, expected)  # no row stays free while an expert is asked
    assert expected.sum() == N
    pairs = kept(rows, routing)
    real = [True] * routing.num_tokens if routing.mask_T is None else routing.mask_T.tolist()
    assert len(set(pairs)) == N
    assert all(real[token] for token, _ in pairs)
    if routing.choices is None:
        return
    # A slot leads to the row, the row back to the slot, and the weight travelled along.
    slots = rows.index.slot_TK.flatten()
    filled = (slots >= 0).nonzero().flatten()
    assert sorted(slots[filled].tolist()) == list(range(N))
    for n in filled.tolist():
        row = slots[n]
        assert rows.index.token_N[row] == n // routing.choices
        assert pairs[row] == (n // routing.choices, routing.expert_N[n].item())
        assert rows.weight_N[row] == routing.weight_N[n]
    assert rows.index.dropless == (capacity is None and routing.mask_T is None)
