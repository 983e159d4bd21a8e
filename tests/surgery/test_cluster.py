import pytest
import torch
from torch import nn

import mixtura as mx
from mixtura.errors import UserError
from mixtura.surgery.cluster import Cluster, group_units
from mixtura.surgery.moefy import moefy


def two_habits():
    """Units 0, 2, 4, .. answer to the first half of x, the others to the second."""
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))
    with torch.no_grad():
        model[0].weight.abs_()
        model[0].bias.zero_()
        model[0].weight[::2, 4:] = 0
        model[0].weight[1::2, :4] = 0
    x = torch.rand(200, 8)
    x[:100, 4:] = 0
    x[100:, :4] = 0
    return model, x


def test_units_that_are_active_together_share_an_expert():
    model, x = two_habits()
    groups = group_units(model[:2](x).detach(), 2)
    assert sorted(sorted(group) for group in groups.tolist()) == [[*range(0, 16, 2)], [*range(1, 16, 2)]]


@pytest.mark.parametrize("k", [2, 1])
@pytest.mark.filterwarnings("ignore:with k=1 a weight")
def test_the_dense_output_with_all_experts_and_with_the_right_one(k):
    model, x = two_habits()
    expected = model(x)
    layer = moefy(model, num_experts=2, k=k, init="cluster", data=[x])
    # With one of two experts the other's units would have been silent.
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=2e-4)


@pytest.mark.parametrize("activation", ["gelu", "swiglu"])
def test_all_active_is_equal_in_any_mlp(activation):
    model, x = mx.MLP(dim=8, hidden=12, activation=activation, bias=True), torch.randn(50, 8)
    expected = model(x)
    layer = moefy(model, num_experts=4, k=4, init=Cluster(iterations=2), data=[x[:20], x[20:]])
    assert layer.experts.hidden == 3
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=2e-4)


def test_fewer_experts_are_nearer_than_a_random_choice():
    model, x = mx.MLP(dim=8, hidden=32, activation="relu"), torch.randn(400, 8)
    expected = model(x)
    layer = moefy(model, num_experts=8, k=4, init="cluster", data=[x])
    error = (layer(x) - expected).norm()
    with torch.no_grad():
        nn.init.normal_(layer.router.weight, std=1e-6)
    assert error < 0.8 * (layer(x) - expected).norm()


def test_what_cannot_be_is_refused():
    model, x = two_habits()
    with pytest.raises(UserError, match="num_experts that divides the hidden width 16, got 3"):
        moefy(model, num_experts=3, init="cluster", data=[x])
    with pytest.raises(UserError, match="expected data that reaches 0, got no batch"):
        moefy(nn.Sequential(model), num_experts=2, init="cluster", data=[])
    gate = {"gate": nn.Linear(8, 4)}
    with pytest.raises(UserError, match="one row of a matrix for each expert, got TopK"):
        moefy(model, num_experts=4, init="cluster", data=[x], router_options=gate)
