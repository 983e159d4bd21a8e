"""Convolutional mixtures: each image's own kernel and routed experts against loops, gradients, refusals."""

import pytest
import torch
from torch.nn import functional as F  # noqa: N812  # torch's own customary name

import mixtura as mx
from mixtura import UserError
from mixtura.models.condconv import CondConv, CondConvConfig, CondConvNet, RoutedConv


def test_each_image_is_convolved_with_its_own_mix_of_kernels():
    layer, x = CondConv(3, 5, num_experts=4), torch.randn(2, 3, 6, 7)
    expected = []
    for image in x:
        share = torch.sigmoid(layer.gate.weight @ image.mean((1, 2)) + layer.gate.bias)
        kernel = sum(share[e] * layer.weight[e] for e in range(4))
        expected.append(F.conv2d(image.unsqueeze(0), kernel, padding=1))
    torch.testing.assert_close(layer(x), torch.cat(expected))


@pytest.mark.parametrize("k", [1, 2])
def test_each_image_passes_the_experts_of_its_gate(k):
    layer, x = RoutedConv(3, 5, size=6, num_experts=4, k=k).eval(), torch.randn(3, 3, 6, 6)
    expected = torch.zeros(3, 5, 6, 6)
    for b, image in enumerate(x):
        share = layer.moe.router.gate.linear(image.mean((1, 2))).softmax(0)
        for e in share.topk(k).indices.tolist():
            expected[b] += share[e] * layer.moe.experts[e](image.unsqueeze(0))[0]
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("kind", ["mixed", "routed", "dense"])
def test_every_parameter_gets_a_gradient(kind):
    net = CondConvNet(CondConvConfig(image_size=8, width=4, stages=2, kind=kind, num_experts=3, k=3))
    net(torch.randn(6, 1, 8, 8)).square().sum().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_only_routed_ones_are_layers_of_their_own():
    counts = {
        kind: sum(isinstance(m, mx.MoE) for m in CondConvNet(CondConvConfig(kind=kind)).modules())
        for kind in ("mixed", "routed", "dense")
    }
    assert counts == {"mixed": 0, "routed": 3, "dense": 0}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"width": 0}, "expected width of at least 1, got 0"),
        ({"num_classes": 1}, "expected num_classes of at least 2, got 1"),
        ({"kind": "odd"}, "expected a kind among mixed, routed, dense, got 'odd'"),
        ({"image_size": 7}, "expected an image_size of at least 8 for 3 stages, got 7"),
    ],
)
def test_impossible_sizes(changed, message):
    with pytest.raises(UserError, match=message):
        CondConvConfig(**changed)


def test_a_layer_without_experts_is_refused():
    with pytest.raises(UserError, match="expected num_experts of at least 1, got 0"):
        CondConv(3, 5, num_experts=0)


def test_images_of_another_shape_are_refused():
    with pytest.raises(UserError, match=r"expected images of shape \(B, 1, 28, 28\), got \(2, 1, 8, 8\)"):
        CondConvNet(CondConvConfig())(torch.zeros(2, 1, 8, 8))
