"""How experts are grouped, and where their rows lie."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mixtura.kernels import layout as layout_module
from mixtura.kernels.layout import CALL_OVERHEAD_MACS, Layout, Partition, partition
from tests.kernels.cases import make_index

CHEAP, DEAR = 1, CALL_OVERHEAD_MACS * 10


def test_cheap_rows_share_one_product_in_the_experts_own_order():
    assert partition([3, 9, 5], macs_per_row=CHEAP) == Partition([0, 1, 2], [3], [16])


@pytest.mark.parametrize("counts", [[3, 9, 5], [1, 2], [7]])
def test_dear_rows_are_not_padded_and_not_reordered(counts):
    assert partition(counts, macs_per_row=DEAR) == Partition(list(range(len(counts))), [1] * len(counts), counts)


def test_one_expert_that_towers_above_the_others_stands_alone():
    found = partition([10, 11, 5000, 9, 12, 10, 8, 11], macs_per_row=10_000)
    assert found.order[0] == 2
    assert found.sizes[0] == 1
    assert len(found.sizes) < 8


@given(st.lists(st.integers(0, 2000), min_size=1, max_size=40), st.integers(1, 10**7))
def test_every_expert_has_room_in_one_group_and_no_extreme_is_cheaper(counts, macs_per_row):
    found = partition(counts, macs_per_row=macs_per_row)
    assert sorted(found.order) == list(range(len(counts)))
    assert sum(found.sizes) == len(counts)
    assert min(found.sizes) > 0
    room = [capacity for size, capacity in zip(found.sizes, found.capacities, strict=True) for _ in range(size)]
    assert all(counts[expert] <= rows for expert, rows in zip(found.order, room, strict=True))
    cost = found.num_rows * macs_per_row + len(found.sizes) * CALL_OVERHEAD_MACS
    assert cost <= sum(counts) * macs_per_row + len(counts) * CALL_OVERHEAD_MACS
    assert cost <= (max(counts) + 15) * len(counts) * macs_per_row + CALL_OVERHEAD_MACS


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1]])
@pytest.mark.parametrize(("sizes", "capacities"), [([3], [16]), ([1, 2], [3, 16]), ([1, 1, 1], [3, 3, 3])])
@pytest.mark.usefixtures("poison")
def test_rows_spread_and_come_back(order, sizes, capacities, monkeypatch):
    found = Partition(order, sizes, capacities)
    monkeypatch.setattr(layout_module, "partition", lambda counts, *, macs_per_row: found)
    index = make_index([[0, 2], [2, -1], [2, 0]], num_experts=3)
    layout = Layout(index, macs_per_row=1)
    values_ND = torch.cat([torch.randn(5, 4), torch.zeros(1, 4)])  # the tail's row comes back as zeros
    rows = layout.spread(values_ND)
    assert torch.equal(layout.compact(rows), values_ND)
    assert torch.equal(rows.sum(0), layout.spread(values_ND).sum(0))  # padding is zero
    x_TD = torch.randn(3, 4)
    assert torch.equal(layout.compact(layout.take(x_TD))[:5], x_TD[index.token_N[:5]])
    expected_TD = torch.zeros(3, 4).index_add(0, index.token_N, values_ND)
    torch.testing.assert_close(layout.sum_to_tokens(rows), expected_TD)


def test_a_group_is_padded_to_its_largest_count_rounded_up():
    found = partition([17, 3, 2, 1000], macs_per_row=10_000)
    assert found == Partition([3, 0, 1, 2], [1, 1, 2], [1008, 32, 16])
