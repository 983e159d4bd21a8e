"""The two dicts of losses together: each acts through a layer's recipe, in training alone."""

import pytest
import torch

import mixtura as mx
from mixtura.losses import LOSSES, PARAMETER_LOSSES


def test_a_name_is_in_one_dict_only():
    assert not LOSSES.keys() & PARAMETER_LOSSES.keys()


@pytest.mark.parametrize("name", [*LOSSES, *PARAMETER_LOSSES])
def test_each_acts_through_the_recipe(name):
    recipe = mx.MoEConfig(dim=4, hidden=6, num_experts=3, k=2, router="noisy_topk", losses={name: 0.5})
    layer, x = recipe.build(), torch.randn(2, 5, 4)
    torch.nn.init.normal_(layer.router.weight)
    parameters = list(layer.parameters())
    torch.manual_seed(0)
    with mx.collect_losses(layer) as losses:
        layer(x)
    expected = torch.autograd.grad(losses.total(), parameters, allow_unused=True)
    assert any(grad is not None and grad.any() for grad in expected)
    torch.manual_seed(0)
    layer(x).mul(0).sum().backward()
    for parameter, grad in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.grad, torch.zeros_like(parameter) if grad is None else grad)
    with mx.collect_losses(layer.eval()) as losses:
        layer(x)
    assert losses.raw == []


@pytest.mark.parametrize("name", [*LOSSES, *PARAMETER_LOSSES])
def test_autocast_rounds_no_loss(name):
    layer, x = mx.MoEConfig(dim=4, hidden=6, num_experts=3, k=2, losses={name: 0.5}).build(), torch.randn(7, 4)
    torch.nn.init.normal_(layer.router.weight)
    with mx.collect_losses(layer) as exact:
        layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16), mx.collect_losses(layer) as cast:
        layer(x)
    assert cast.total().dtype is torch.float32
    assert cast.total().item() == exact.total().item()
