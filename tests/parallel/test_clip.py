"""The norm on one process; tests/distributed compares it on every mesh."""

import torch
from torch import nn

from mixtura.parallel.clip import clip_grad_norm, total_norm


def test_as_torch_does():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(1, 1))
    model[:2](torch.randn(5, 3)).square().sum().backward()
    grads = [p.grad.clone() for p in model[:2].parameters()]
    expected = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
    clipped = [p.grad.clone() for p in model[:2].parameters()]
    for parameter, grad in zip(model[:2].parameters(), grads, strict=True):
        parameter.grad = grad
    torch.testing.assert_close(clip_grad_norm(model, 0.1), expected)
    for parameter, grad in zip(model[:2].parameters(), clipped, strict=True):
        torch.testing.assert_close(parameter.grad, grad)


def test_infinity_only_measures():
    layer = nn.Linear(2, 1, bias=False)
    layer.weight.grad = torch.tensor([[3.0, 4.0]])
    assert clip_grad_norm(layer, float("inf")).item() == 5
    assert layer.weight.grad.tolist() == [[3.0, 4.0]]


def test_no_gradient_at_all():
    assert total_norm(nn.Linear(2, 1)).item() == 0
