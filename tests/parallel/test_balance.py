from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

import mixtura as mx
from mixtura.parallel.balance import place_experts

LOADS = st.lists(st.integers(0, 50), min_size=1, max_size=12)


@given(LOADS, st.integers(1, 4), st.data())
def test_every_expert_is_somewhere_and_ranks_are_full(loads, ranks, data):
    smallest = -len(loads) % ranks
    most = len(loads) * (ranks - 1)
    copies = data.draw(st.sampled_from(range(smallest, most + 1, ranks)))
    placement = place_experts(loads, ranks=ranks, copies=copies)
    assert {e for rank in placement.experts for e in rank} == set(range(len(loads)))
    assert {len(rank) for rank in placement.experts} == {(len(loads) + copies) // ranks}
    assert all(len(set(rank)) == len(rank) for rank in placement.experts)
    assert sum(placement.loads) == pytest.approx(sum(loads))
    number = [sum(e in rank for rank in placement.experts) for e in range(len(loads))]
    for rank, load in zip(placement.experts, placement.loads, strict=True):
        assert load == pytest.approx(sum(loads[e] / number[e] for e in rank))


@given(st.lists(st.integers(0, 50), min_size=6, max_size=6))
def test_close_to_the_best_of_all_placements(loads):
    best = min(
        max(sum(loads[e] for e in order[:3]), sum(loads[e] for e in order[3:])) for order in permutations(range(6))
    )
    assert max(place_experts(loads, ranks=2).loads) <= best * 7 / 6 + 1e-9


def test_copies_go_to_the_busiest():
    alone = place_experts([100, 10, 10, 10], ranks=2)
    helped = place_experts([100, 10, 10, 10], ranks=2, copies=2)
    assert alone.imbalance == pytest.approx(110 * 2 / 130)
    assert helped.imbalance == pytest.approx(1.0, abs=0.16)
    assert sum(0 in rank for rank in helped.experts) == 2


def test_evenly_loaded_experts_stay_even():
    assert place_experts([3.0] * 8, ranks=4).imbalance == 1
    assert place_experts([0.0] * 8, ranks=4).imbalance == 1
    assert sorted(place_experts([1, 2, 3, 4], ranks=2).order) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("loads", "numbers", "message"),
    [
        ([], {"ranks": 1}, "expected the load of at least one expert"),
        ([1, -1], {"ranks": 1}, "each finite and not negative"),
        ([1, 2, 3], {"ranks": 2}, "expected ranks that divide the 3 experts and 0 further copies, got 2"),
        ([1, 2], {"ranks": 2, "copies": 4}, "expected at most 2 copies"),
    ],
)
def test_bad_numbers(loads, numbers, message):
    with pytest.raises(mx.UserError, match=message):
        place_experts(loads, **numbers)
