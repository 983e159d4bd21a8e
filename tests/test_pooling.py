"""Highest gate and vote, by hand and as a layer does them."""

import pytest
import torch
from torch import nn

import mixtura as mx
from mixtura import UserError
from mixtura.pooling import highest
from mixtura.routing import SlotRouting
from tests.routings import make_routing


def test_highest_takes_the_first_of_equals_and_no_padding():
    routing = make_routing(
        [[0, 1], [1, 2], [2, 0]], num_experts=3, weights=[[0.5, 0.5], [0.2, 0.3], [0.9, 0.1]], mask=[True, True, False]
    )
    pooled = highest(routing)
    assert pooled.expert_N.tolist() == [0, -1, -1, 2, -1, -1]
    assert pooled.weight_N.tolist() == [1.0] * 6


def test_highest_of_different_numbers_of_choices():
    routing = make_routing([[0, 1], [], [2]], num_experts=3, weights=[[0.1, 0.2], [], [0.0]], regular=False)
    assert highest(routing).expert_N.tolist() == [-1, 1, 2]


def test_highest_of_slots_is_refused():
    half = torch.full((2, 2), 0.5)
    with pytest.raises(UserError, match='expected pooling="sum" with a router of slots'):
        highest(SlotRouting.from_slots(half, half, num_experts=2))


class Constant(nn.Module):
    """An expert that answers every row with the same scores."""

    def __init__(self, *scores):
        super().__init__()
        self.register_buffer("scores", torch.tensor(scores))

    def forward(self, x):
        return self.scores.expand(x.shape[0], -1)


def classifiers(pooling):
    """Three experts over two classes; the gate weighs them .2, .3 and .5."""
    layer = mx.MoE(
        router=mx.routers.TopK(4, num_experts=3, k=3),
        experts=mx.ModuleExperts([Constant(2.0, 1.0), Constant(3.0, 1.0), Constant(0.0, 1.0)]),
        pooling=pooling,
    )
    with torch.no_grad():
        layer.router.weight.copy_(torch.tensor([0.2, 0.3, 0.5]).log().unsqueeze(1).expand(3, 4) / 4)
    return layer.eval()


@pytest.mark.parametrize(
    ("pooling", "expected"), [("sum", [1.3, 1.0]), ("highest", [0.0, 1.0]), ("vote", [2 / 3, 1 / 3])]
)
def test_a_layer_of_classifiers(pooling, expected):
    layer, x = classifiers(pooling), torch.ones(2, 5, 4)
    y = layer(x)
    assert y.shape == (2, 5, 2)
    torch.testing.assert_close(y, torch.tensor(expected).expand(2, 5, 2))
    torch.testing.assert_close(layer.train()(x), torch.tensor([1.3, 1.0]).expand(2, 5, 2))


@pytest.mark.parametrize("pooling", ["highest", "vote"])
def test_tokens_without_an_expert_get_zeros(pooling):
    layer = classifiers(pooling)
    y = layer(torch.ones(3, 4), mask=torch.tensor([True, False, True]))
    assert y[1].tolist() == [0.0, 0.0]
    torch.testing.assert_close(y[0], y[2])
    assert y[0].sum() == 1
