"""Routing and Rows as values, taps, and what recomputation looks like from inside."""

import dataclasses

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from mixtura.kernels.rows import RowIndex
from mixtura.routing import Routing, Rows, announce, is_recomputing, tap
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


def test_taps_nest_and_close():
    heard = []
    layer, routing = nn.Identity(), make_routing([[0]], num_experts=1)
    with tap(lambda *_: heard.append("outer")):
        with tap(lambda *_: heard.append("inner")):
            announce(layer, routing, None)
        announce(layer, routing, None)
    announce(layer, routing, None)
    assert heard == ["outer", "inner", "outer"]


def test_a_tap_closes_after_an_error():
    heard = []
    with pytest.raises(ZeroDivisionError), tap(lambda *_: heard.append(1)):
        raise ZeroDivisionError
    announce(nn.Identity(), make_routing([[0]], num_experts=1), None)
    assert not heard


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_recomputation_is_recognised(use_reentrant):
    seen = []

    def block(x):
        seen.append(is_recomputing())
        return x.sin()

    x = torch.ones(2, requires_grad=True)
    y = checkpoint(block, x, use_reentrant=use_reentrant)
    assert seen == [False]
    y.sum().backward()
    assert seen == [False, True]
    assert not is_recomputing()
