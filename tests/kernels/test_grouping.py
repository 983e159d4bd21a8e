"""Grouping of assignments against sorting in plain Python."""

import contextlib

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mixtura.kernels import use
from mixtura.kernels.grouping import group, keep_first, slots_of


@given(st.integers(1, 6), st.lists(st.integers(0, 6), max_size=40), st.integers(1, 9), st.booleans())
@settings(max_examples=200)
def test_any_routes(num_experts, routes, capacity, by_torch):
    routes = [min(route, num_experts) for route in routes]
    numbers = range(len(routes))
    route_N = torch.tensor(routes, dtype=torch.int64)
    with use("cpu") if by_torch else contextlib.nullcontext():
        order, counts = group(route_N, num_experts=num_experts)
    assert order.tolist() == sorted(numbers, key=routes.__getitem__)
    assert counts.tolist() == [routes.count(e) for e in range(num_experts)]

    kept, kept_counts = keep_first(order, route_N, counts, capacity=capacity)
    mine = [[n for n in numbers if routes[n] == e] for e in range(num_experts)]
    first = [n for own in mine for n in own[:capacity]]
    late = [n for own in mine for n in own[capacity:]] + [n for n in numbers if routes[n] == num_experts]
    assert kept.tolist() == first + late
    assert kept_counts.tolist() == [min(len(own), capacity) for own in mine]

    slots = slots_of(kept, kept_counts, choices=1, all_kept=False).flatten().tolist()
    assert [slots[n] for n in first] == list(range(len(first)))
    assert all(slots[n] == -1 for n in late)


def test_more_experts_than_a_narrow_key_can_number():
    route_N = torch.tensor([40_000, 3, 40_000, 39_999])
    order, counts = group(route_N, num_experts=40_000)
    assert order.tolist() == [1, 3, 0, 2]
    assert counts.nonzero().flatten().tolist() == [3, 39_999]
