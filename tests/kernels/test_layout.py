"""How experts are grouped, and where their rows lie."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mixtura.kernels import layout as layout_module
from mixtura.kernels.layout import CALL_OVERHEAD_MACS, Layout, partition
from tests.kernels.cases import make_index

CHEAP, DEAR = 1, CALL_OVERHEAD_MACS * 10


def cost(groups, counts, macs_per_row):
    rows = sum(len(group) * max(counts[e] for e in group) for group in groups)
    return rows * macs_per_row + len(groups) * CALL_OVERHEAD_MACS


def test_cheap_rows_share_one_product_in_the_experts_own_order():
    assert partition([3, 9, 5], macs_per_row=CHEAP) == [[0, 1, 2]]


def test_dear_rows_are_not_padded():
    assert partition([3, 9, 5], macs_per_row=DEAR) == [[0], [1], [2]]


def test_one_expert_that_towers_above_the_others_stands_alone():
    groups = partition([10, 11, 5000, 9, 12, 10, 8, 11], macs_per_row=10_000)
    assert [2] in groups
    assert len(groups) < 8


@given(st.lists(st.integers(0, 2000), min_size=1, max_size=40), st.integers(1, 10**7))
def test_every_expert_is_in_one_group_and_no_extreme_is_cheaper(counts, macs_per_row):
    groups = partition(counts, macs_per_row=macs_per_row)
    everyone = list(range(len(counts)))
    assert sorted(e for group in groups for e in group) == everyone
    assert all(groups)
    chosen = cost(groups, counts, macs_per_row)
    assert chosen <= cost([everyone], counts, macs_per_row)
    assert chosen <= cost([[e] for e in everyone], counts, macs_per_row)


@pytest.mark.parametrize("groups", [[[0, 1, 2]], [[2, 0], [1]], [[0], [1], [2]]])
@pytest.mark.usefixtures("poison")
def test_rows_spread_and_come_back(groups, monkeypatch):
    monkeypatch.setattr(layout_module, "partition", lambda counts, *, macs_per_row: groups)
    index = make_index([[0, 2], [2, -1], [2, 0]], num_experts=3)
    layout = Layout(index, macs_per_row=1)
    values_ND = torch.randn(5, 4)
    rows = layout.spread(values_ND)
    assert torch.equal(layout.compact(rows), values_ND)
    assert torch.equal(rows.sum(0), layout.spread(values_ND).sum(0))  # padding is zero
    x_TD = torch.randn(3, 4)
    assert torch.equal(layout.compact(layout.take(x_TD)), x_TD[index.token_N])
    expected_TD = torch.zeros(3, 4).index_add(0, index.token_N, values_ND)
    torch.testing.assert_close(layout.sum_to_tokens(rows), expected_TD)


def test_a_group_is_padded_to_its_largest_count_rounded_up(monkeypatch):
    monkeypatch.setattr(layout_module, "partition", lambda counts, *, macs_per_row: [[1], [0, 2]])
    layout = Layout(make_index([[0]] * 17 + [[1]] * 3 + [[2]] * 2, num_experts=3), macs_per_row=1)
    assert [group.capacity for group in layout.groups] == [16, 32]
    assert layout.num_rows == 16 + 2 * 32
