import pytest
import torch
from torch import nn

import mixtura as mx
from mixtura.errors import UserError
from mixtura.surgery.moefy import moefy
from mixtura.surgery.to_dense import to_dense
from tests.surgery.layers import build


def mean_of(layer, name):
    return getattr(layer.experts, name).detach().mean(0)


@pytest.mark.parametrize("activation", ["relu", "swiglu"])
def test_upcycled_and_back_is_the_same_model(activation):
    model = nn.Sequential(nn.Linear(8, 8), mx.MLP(dim=8, hidden=12, activation=activation, bias=True))
    x, keys = torch.randn(9, 8), model.state_dict().keys()
    expected = model(x)
    to_dense(moefy(model, "1", num_experts=4, k=2))
    torch.testing.assert_close(model(x), expected, rtol=0, atol=2e-6)
    assert model.state_dict().keys() == keys


def test_the_average_is_that_of_the_weights():
    layer = build("topk")
    dense = to_dense(nn.Sequential(layer))[0]
    torch.testing.assert_close(dense.up_proj.weight, mean_of(layer, "up_proj"))
    torch.testing.assert_close(dense.down_proj.bias, mean_of(layer, "down_bias"))


@pytest.mark.parametrize("activation", ["gelu", "swiglu"])
def test_side_by_side_is_the_mixture_with_all_chosen_alike(activation):
    layer, x = build("dense", activation=activation), torch.randn(9, 8)
    nn.init.zeros_(layer.router.weight)
    expected = layer(x)
    dense = to_dense(layer, method="concat")
    assert dense.down_proj.weight.shape == (8, 48)
    torch.testing.assert_close(dense(x), expected, rtol=0, atol=1e-6)


def test_distilling_comes_nearer_than_the_average():
    x = torch.randn(200, 8)
    layer = build("topk")
    wanted = layer(x).detach()
    averaged = to_dense(nn.Sequential(layer))[0]
    distilled = to_dense(nn.Sequential(layer), method="distil", data=[x], steps=200, lr=1e-2)[0]
    errors = [nn.functional.mse_loss(each(x), wanted).item() for each in (averaged, distilled)]
    assert errors[1] < 0.5 * errors[0]
    assert all(parameter.grad is None for parameter in distilled.parameters())


def test_what_cannot_be_is_refused():
    with pytest.raises(UserError, match="a method among average, concat, distil, got 'melt'"):
        to_dense(build("topk"), method="melt")
    with pytest.raises(UserError, match='expected data= with method="distil"'):
        to_dense(build("topk"), method="distil")
    shared = mx.MoEConfig(dim=4, hidden=8, num_experts=2, shared_hidden=4).build()
    with pytest.raises(UserError, match=r"without shared experts, got some in 1$"):
        to_dense(nn.Sequential(nn.Identity(), shared))
    with pytest.raises(UserError, match="a model with mixtures of GroupedMLP experts, got a Linear"):
        to_dense(nn.Linear(2, 2))
