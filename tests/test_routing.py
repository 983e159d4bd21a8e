"""Routing and Rows as values."""

import dataclasses

import pytest
import torch

from mixtura.dispatch import dispatch
from mixtura.kernels.rows import RowIndex
from mixtura.routing import Routing, Rows, SlotRouting
from tests.routings import make_routing


def test_from_choices_lists_assignments_in_token_order_best_first():
    expert_TK, weight_TK = torch.tensor([[2, 0], [1, 2]]), torch.tensor([[0.7, 0.3], [0.6, 0.4]])
    routing = Routing.from_choices(expert_TK, weight_TK, logits_TE=torch.zeros(2, 3), probs_TE=torch.zeros(2, 3))
    assert routing.token_N.tolist() == [0, 0, 1, 1]
    assert routing.expert_N.tolist() == [2, 0, 1, 2]
    assert torch.equal(routing.weight_N, torch.tensor([0.7, 0.3, 0.6, 0.4]))
    assert (routing.choices, routing.num_tokens, routing.num_experts) == (2, 2, 3)
    assert routing.counts_E().tolist() == [1, 1, 2]


def test_from_choices_of_no_tokens():
    empty = torch.zeros(0, 3)
    routing = Routing.from_choices(torch.zeros(0, 2, dtype=torch.int64), empty[:, :2], logits_TE=empty, probs_TE=empty)
    assert routing.token_N.dtype is torch.int64
    assert routing.counts_E().tolist() == [0, 0, 0]


def test_counts_leave_padding_out():
    routing = make_routing([[0, 1], [1, 2], [1, 0]], num_experts=4, mask=[True, False, True])
    assert routing.counts_E().tolist() == [2, 2, 0, 0]
    different = make_routing([[0], [1, 2, 3], []], num_experts=4, mask=[False, True, True], regular=False)
    assert different.counts_E().tolist() == [0, 1, 1, 1]


def test_detach_drops_the_graph_and_keeps_the_values():
    p = torch.rand(2, 2, requires_grad=True)
    routing = dataclasses.replace(
        Routing.from_choices(torch.tensor([[0], [1]]), p[:, :1], logits_TE=p * 2, probs_TE=p * 1, load_TE=p * 3),
        mask_T=torch.tensor([True, False]),
    )
    detached = routing.detach()
    for field in dataclasses.fields(Routing):
        before, after = getattr(routing, field.name), getattr(detached, field.name)
        if isinstance(before, torch.Tensor):
            assert torch.equal(before, after), field.name
            assert not after.requires_grad, field.name
        else:
            assert before == after
    assert routing.weight_N.requires_grad


def test_both_values_are_frozen():
    routing = make_routing([[0]], num_experts=1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        routing.choices = 2


def test_rows_gather_scale_and_combine():
    index = RowIndex(torch.tensor([1, 0, 1]), torch.tensor([1, 2]), torch.tensor([[1, -1], [0, 2]]), 2, False)
    x_TD = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.bfloat16)
    rows = Rows(x_TD=x_TD, weight_N=torch.tensor([0.5, 2.0, 1.0]), index=index)
    assert rows.counts_E.tolist() == [1, 2]
    assert rows.gather().tolist() == [[3.0, 4.0], [1.0, 2.0], [3.0, 4.0]]
    scaled = rows.scale(rows.gather())
    assert scaled.dtype is torch.bfloat16
    assert rows.combine(scaled).tolist() == [[2.0, 4.0], [4.5, 6.0]]


def test_null_experts_and_none_reach_no_expert():
    probs = torch.full((2, 4), 0.25)
    routing = dataclasses.replace(
        Routing.from_choices(
            torch.tensor([[0, 3, -1], [2, 1, 3]]), torch.ones(2, 3), logits_TE=probs, probs_TE=probs, partial=True
        ),
        null_experts=2,
    )
    assert routing.num_experts == 2
    assert routing.routes_N().tolist() == [0, 3, 4, 2, 1, 3]
    assert routing.route_counts().tolist() == [1, 1, 1, 2]
    assert routing.counts_E().tolist() == [1, 1]
    assert not routing.reaches_all
    masked = dataclasses.replace(routing, mask_T=torch.tensor([False, True]))
    assert masked.route_counts().tolist() == [0, 1, 1, 1]


def test_slots_are_means_of_tokens_and_tokens_means_of_slots():
    x_TD = torch.tensor([[1.0], [3.0], [5.0]])
    share_TS = torch.tensor([[0.5, 0.0], [0.5, 0.0], [0.0, 1.0]])
    mix_TS = torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]])
    routing = SlotRouting.from_slots(share_TS, mix_TS, num_experts=2)
    assert routing.probs_TE.tolist() == mix_TS.tolist()
    assert (routing.num_tokens, routing.num_experts, routing.counts_E().tolist()) == (3, 2, [1, 1])
    rows = dispatch(routing, x_TD)
    assert rows.gather().tolist() == [[2.0], [5.0]]
    assert rows.combine(rows.gather() * torch.tensor([[1.0], [10.0]])).tolist() == [[2.0], [26.0], [50.0]]


def test_first_choices():
    regular = make_routing([[2, 0], [-1, 2]], num_experts=3)
    assert regular.first_choice_T().tolist() == [2, -1]
    irregular = make_routing([[0, 1], [1]], num_experts=2, probs=[[0.2, 0.8], [0.9, 0.1]], regular=False)
    assert irregular.first_choice_T().tolist() == [1, 0]
