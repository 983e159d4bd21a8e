"""Experts whose rows are no vectors: convolutions over small images, with every router and every policy."""

import warnings

import pytest
import torch
from torch import nn

import mixtura as mx
from tests.contracts.cases import POLICIES, ROUTERS, D, E, build
from tests.contracts.loop import moe_loop

IMAGE = (1, 2, 3)  # channels, height, width: D numbers
T = 11


class Images:
    """A layer of the table with convolutions for experts, called with tokens as the table's others are."""

    def __init__(self, router: str, policy: str = "dropless", **options) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="with k=1")
            self.layer = build(router, "modules", policy, **options)
        kernels = [(1, 1), (1, 3), (3, 1), (3, 3), (1, 3), (3, 3)][: self.layer.router.num_experts]
        self.layer.experts = mx.ModuleExperts(
            [nn.Conv2d(1, 1, size, padding="same") for size in kernels], row_shape=IMAGE
        )
        self.context = ROUTERS[router].context
        self.layer.row_shape = IMAGE

    def __call__(self, x_TD, **known):
        torch.manual_seed(11)
        if self.context is not None:
            known["context"] = self.context(x_TD)
        return self.layer(x_TD.unflatten(-1, IMAGE), **known).flatten(-3)

    def loop(self, x_TD):
        torch.manual_seed(11)
        return moe_loop(self.layer, x_TD, self.layer.router(x_TD))


def test_the_image_is_as_wide_as_the_table():
    assert torch.Size(IMAGE).numel() == D
    assert len(Images("topk").layer.experts) == E


@pytest.mark.parametrize("router", ROUTERS)
@pytest.mark.parametrize("policy", POLICIES)
def test_output_and_gradients_are_the_loops(router, policy):
    images, x, weight = Images(router, policy), torch.randn(T, D, requires_grad=True), torch.randn(T, D)
    results = []
    for y in (images(x), images.loop(x)):
        wanted = [x, *images.layer.parameters()]
        results.append([y, *torch.autograd.grad((y * weight).sum(), wanted, materialize_grads=True)])
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("router", ROUTERS)
@pytest.mark.parametrize("shape", [(3, 2, D), (D,), (0, D)])
def test_any_leading_shape(router, shape):
    images, x = Images(router, losses={"load_balance": 0.1}), torch.randn(shape, requires_grad=True)
    y = images(x)
    assert y.shape == shape
    y.sum().backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("router", ROUTERS)
def test_padding_gives_zeros(router):
    mask = torch.arange(T) < 7
    y = Images(router)(torch.randn(T, D), mask=mask)
    assert ROUTERS[router].mixes or y[mask].any(1).all()
    assert not y[~mask].any()


@pytest.mark.parametrize("router", [name for name, case in ROUTERS.items() if not case.mixes])
def test_a_nan_poisons_its_own_image_only(router):
    images, x = Images(router), torch.randn(T, D)
    images.layer.eval()
    clean, bad = images(x), x.index_fill(0, torch.tensor([4]), torch.nan)
    y = images(bad)
    others = [t for t in range(T) if t != 4]
    torch.testing.assert_close(y[others], clean[others])
    assert y[4].isnan().all()
