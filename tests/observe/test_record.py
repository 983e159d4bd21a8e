"""Recorded routing: once per forward and layer, whatever recomputes."""

import dataclasses
import math

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import mixtura as mx
from mixtura.config import MoEConfig
from mixtura.dispatch import dispatch
from mixtura.observe.record import LayerRecord, counts_by_group
from mixtura.routing import SlotRouting
from tests.routings import make_routing


def make_layer(**options):
    return mx.MoEConfig(**{"dim": 4, "hidden": 4, "num_experts": 3, "k": 2, **options}).build()


class TestLayerRecord:
    def test_counts_and_dropped_share(self):
        record = LayerRecord(make_routing([[0, 1], [0, 2]], num_experts=3), torch.tensor([1, 1, 1]))
        assert record.counts_E().tolist() == [2, 1, 1]
        assert record.dropped_share().item() == pytest.approx(0.25)

    def test_padding_is_not_dropped(self):
        routing = make_routing([[0], [0], [1]], num_experts=2, mask=[True, True, False])
        assert LayerRecord(routing, torch.tensor([2, 0])).dropped_share().item() == 0

    @pytest.mark.parametrize("mask", [None, [False, False]])
    def test_nothing_to_route_drops_nothing(self, mask):
        routing = make_routing([[0], [0]] if mask else [], num_experts=2, mask=mask)
        assert LayerRecord(routing, torch.tensor([0, 0])).dropped_share().item() == 0

    def test_entropy_is_the_mean_over_real_tokens_in_nats(self):
        probs = [[0.5, 0.5], [1.0, 0.0], [0.9, 0.1]]
        routing = make_routing([[0]] * 3, num_experts=2, probs=probs, mask=[True, True, False])
        assert LayerRecord(routing, torch.tensor([2, 0])).entropy().item() == pytest.approx(math.log(2) / 2)

    def test_first_choice(self):
        assert LayerRecord(make_routing([[2, 0], [1, 2]], num_experts=3), torch.zeros(3)).first_choice_T().tolist() == [
            2,
            1,
        ]
        irregular = make_routing([[0, 1], [1]], num_experts=2, probs=[[0.2, 0.8], [0.9, 0.1]], regular=False)
        assert LayerRecord(irregular, torch.zeros(2)).first_choice_T().tolist() == [1, 0]

    @pytest.mark.parametrize("mask", [None, [False, False]])
    def test_entropy_without_real_tokens_is_zero(self, mask):
        routing = make_routing([[0], [0]] if mask else [], num_experts=2, mask=mask)
        routing = dataclasses.replace(routing, probs_TE=routing.probs_TE.view(-1, 2))
        assert LayerRecord(routing, torch.tensor([0, 0])).entropy().item() == 0

    def test_null_experts_and_choices_given_up_are_not_dropped(self):
        # Experts 0 and 1, null experts 2 and 3; the last token's first choice was given up.
        choices = [[0, 2], [3, 0], [0, 1], [-1, 0]]
        routing = dataclasses.replace(make_routing(choices, num_experts=4), null_experts=2, partial=True)
        rows = dispatch(routing, torch.zeros(4, 3), capacity=2)
        record = LayerRecord(routing, rows.counts_E)
        assert record.counts_E().tolist() == [4, 1]
        assert record.kept_E.tolist() == [2, 1]
        assert record.dropped_share().item() == pytest.approx(2 / 5)
        assert record.first_choice_T().tolist() == [0, 3, 0, -1]
        everything = LayerRecord(routing, dispatch(routing, torch.zeros(4, 3)).counts_E)
        assert everything.dropped_share().item() == 0

    def test_slots(self):
        logits_TS = torch.tensor([[2.0, 0.0, 0.0, 0.0], [0.0, 0.0, 3.0, 0.0], [0.0, 1.0, 0.0, 0.0]])
        routing = SlotRouting.from_slots(logits_TS.softmax(0), logits_TS.softmax(1), num_experts=2)
        record = LayerRecord(routing, dispatch(routing, torch.zeros(3, 5)).counts_E)
        assert record.counts_E().tolist() == record.kept_E.tolist() == [2, 2]
        assert record.dropped_share().item() == 0
        assert record.first_choice_T().tolist() == [0, 1, 0]
        assert 0 < record.entropy().item() < math.log(2)


class TestRecord:
    def test_names_order_and_number_of_forwards(self):
        model = nn.Sequential(make_layer(), nn.Tanh(), make_layer())
        with mx.record(model) as log:
            model(torch.randn(5, 4))
            model(torch.randn(7, 4))
        model(torch.randn(9, 4))
        assert list(log) == ["0", "2"]
        assert [record.routing.num_tokens for record in log["2"]] == [5, 7]

    def test_the_values_are_the_routers_without_a_graph(self):
        layer, x = make_layer(), torch.randn(6, 4)
        with mx.record(layer) as log:
            layer(x).sum().backward()
        routing, expected = log[""][0].routing, layer.router(x)
        assert torch.equal(routing.expert_N, expected.expert_N)
        assert torch.equal(routing.weight_N, expected.weight_N)
        for values in (routing.weight_N, routing.probs_TE, routing.logits_TE):
            assert not values.requires_grad
        assert torch.equal(log[""][0].kept_E, expected.counts_E())

    def test_capacity_shows_as_dropped(self):
        layer = make_layer(k=1, router="switch", capacity_factor=1.0)
        nn.init.zeros_(layer.router.weight)  # every token ties, and argmax takes expert 0
        with mx.record(layer) as log:
            layer(torch.randn(9, 4))
        assert log[""][0].kept_E.tolist() == [3, 0, 0]
        assert log[""][0].dropped_share().item() == pytest.approx(2 / 3)

    def test_layers_of_other_models_are_not_logged_and_blocks_nest(self):
        one, other = make_layer(), make_layer()
        with mx.record(one) as outer, mx.record(nn.ModuleList([one, other])) as inner:
            one(torch.randn(2, 4))
            other(torch.randn(3, 4))
        assert {name: len(records) for name, records in outer.items()} == {"": 1}
        assert {name: len(records) for name, records in inner.items()} == {"0": 1, "1": 1}

    def test_a_layer_used_twice_is_logged_twice(self):
        layer = make_layer()
        with mx.record(nn.Sequential(layer, layer)) as log:
            nn.Sequential(layer, layer)(torch.randn(2, 4))
        assert {name: len(records) for name, records in log.items()} == {"0": 2}

    @pytest.mark.parametrize("use_reentrant", [True, False])
    def test_recomputation_is_logged_once(self, use_reentrant):
        layer, x = make_layer(), torch.randn(5, 4, requires_grad=True)
        with mx.record(layer) as log:
            checkpoint(layer, x, use_reentrant=use_reentrant).sum().backward()
        assert len(log[""]) == 1

    def test_evaluation_and_no_grad_are_logged_too(self):
        layer = make_layer().eval()
        with mx.record(layer) as log, torch.no_grad():
            layer(torch.randn(5, 4))
        assert len(log[""]) == 1


def test_groups_are_counted_apart():
    layer = MoEConfig(dim=4, hidden=4, num_experts=3, k=2, router="topk").build().eval()
    x_TD = torch.randn(7, 4)
    seen = counts_by_group(layer, {"a": (layer(x) for x in (x_TD, x_TD[:2])), "b": (layer(x) for x in (x_TD[:5],))})
    assert seen["domains"] == ["a", "b"]
    ((counts,),) = [list(part.values()) for part in seen["layers"].values()]
    assert [sum(row) for row in counts] == [18, 10]
