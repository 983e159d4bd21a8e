"""The DiT: conditions, the flow's target and sampler against known flows, gradients, the distance, refusals."""

import dataclasses

import pytest
import torch
from torch import nn

import mixtura as mx
from mixtura import UserError
from mixtura.models.dit import DiT, DiTConfig, flow_loss, frechet_distance, sample

TINY = DiTConfig(image_size=4, patch_size=2, dim=12, layers=2, heads=2, hidden=16, num_experts=4, num_classes=3)


def make_model(**options) -> DiT:
    model = DiT(dataclasses.replace(TINY, **options))
    nn.init.normal_(model.head.weight)
    for block in model.blocks:  # gates start closed, which would hide what is behind
        nn.init.normal_(block.modulation.weight, std=0.3)
        nn.init.normal_(block.modulation.bias, std=0.3)
    return model


class Toward(nn.Module):
    """The exact velocity of a flow to one image per class."""

    def __init__(self, images):
        super().__init__()
        self.images, self.config = images, TINY

    def forward(self, x, time_B, label_B):
        left = (1 - time_B).clamp(min=1e-6).view(-1, 1, 1, 1)
        target = torch.cat([self.images, torch.zeros_like(self.images[:1])])[label_B]
        return torch.where(left > 1e-5, (target - x) / left, 0 * x)


@pytest.mark.parametrize("num_experts", [4, 0])
def test_every_parameter_gets_a_gradient(num_experts):
    model = make_model(num_experts=num_experts)
    x, label = torch.randn(16, 1, 4, 4), torch.arange(16) % 4
    model(x, torch.rand(16), label).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []
    places = [n for n, block in enumerate(model.blocks) if isinstance(block.feed_forward, mx.MoE)]
    assert places == ([1] if num_experts else [])


def test_time_and_class_matter_and_images_do_not_meet():
    model, x = make_model().eval(), torch.randn(3, 1, 4, 4)
    time, label = torch.tensor([0.1, 0.5, 0.9]), torch.tensor([0, 1, 2])
    y = model(x, time, label)
    assert (model(x, time.flip(0), label) - y).abs().max() > 1e-3
    assert (model(x, time, label.flip(0)) - y).abs().max() > 1e-3
    alone = torch.cat([model(x[i : i + 1], time[i : i + 1], label[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(y, alone)


def test_a_new_model_is_nothing():
    model = DiT(TINY)
    assert not model(torch.randn(2, 1, 4, 4), torch.rand(2), torch.tensor([0, 3])).any()


def test_the_exact_velocity_has_no_loss():
    images = torch.rand(3, 1, 4, 4) * 2 - 1
    label, time = torch.tensor([0, 1, 2, 1]), torch.tensor([0.0, 0.2, 0.5, 0.9])
    loss = flow_loss(Toward(images), images[label], label, time_B=time, noise=torch.randn(4, 1, 4, 4))
    torch.testing.assert_close(loss, torch.zeros(4), atol=1e-9, rtol=0)


def test_the_loss_is_the_mean_square_of_what_lacks():
    class Nothing(nn.Module):
        def forward(self, x, time_B, label_B):
            return 0 * x

    images, noise = torch.randn(2, 1, 4, 4), torch.randn(2, 1, 4, 4)
    loss = flow_loss(Nothing(), images, torch.zeros(2), time_B=torch.rand(2), noise=noise)
    torch.testing.assert_close(loss, torch.stack([(i - n).square().mean() for i, n in zip(images, noise, strict=True)]))


def test_sampling_follows_the_flow_to_its_end():
    images = torch.rand(3, 1, 4, 4) * 1.6 - 0.8
    drawn = sample(Toward(images), torch.tensor([2, 0]), steps=4)
    torch.testing.assert_close(drawn, images[[2, 0]], atol=0.6, rtol=0)
    fine = sample(Toward(images), torch.tensor([2, 0]), steps=200)
    assert (fine - images[[2, 0]]).abs().max() < (drawn - images[[2, 0]]).abs().max() + 1e-3
    torch.testing.assert_close(fine, images[[2, 0]], atol=0.02, rtol=0)


def test_the_same_seed_draws_the_same_and_guidance_changes_it():
    model, label = make_model().eval(), torch.tensor([0, 1])
    first, second, guided = (
        sample(model, label, steps=2, guidance=g, generator=torch.Generator().manual_seed(3)) for g in (1.0, 1.0, 2.0)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, guided)
    assert first.abs().max() <= 1


def test_the_distance_of_diagonal_gaussians_by_hand():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20_000, 2, generator=generator).double()
    x = (x - x.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(x.T))).T  # exactly standard
    other = x * torch.tensor([2.0, 3.0]) + torch.tensor([1.0, 0.0])
    assert frechet_distance(x, other) == pytest.approx(1 + (2 - 1) ** 2 + (3 - 1) ** 2)
    assert frechet_distance(other, other) == pytest.approx(0, abs=1e-9)


def test_the_distance_does_not_care_for_rotations():
    generator = torch.Generator().manual_seed(1)
    a, b = torch.randn(50, 4, generator=generator), torch.randn(60, 4, generator=generator) * 2
    turn = torch.linalg.qr(torch.randn(4, 4, generator=generator)).Q
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(a @ turn, b @ turn), rel=1e-4)


def test_built_on_meta_and_filled_later_it_is_as_new():
    with torch.device("meta"):
        model = DiT(TINY)
    model.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(torch.nan)
    model.reset_parameters()
    assert not model(torch.randn(2, 1, 4, 4), torch.rand(2), torch.tensor([0, 1])).any()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_classes": 0}, "expected num_classes of at least 1, got 0"),
        ({"dim": 15, "heads": 3}, "expected an even dim, got 15"),
    ],
)
def test_impossible_sizes(changed, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(TINY, **changed)


def test_bad_calls():
    with pytest.raises(UserError, match=r"expected images of shape \(B, 1, 4, 4\), got \(1, 1, 8, 8\)"):
        make_model()(torch.zeros(1, 1, 8, 8), torch.zeros(1), torch.zeros(1, dtype=torch.long))
    with pytest.raises(UserError, match="expected steps of at least 1, got 0"):
        sample(make_model(), torch.tensor([0]), steps=0)
    with pytest.raises(UserError, match="expected at least 2 rows of features, got 1"):
        frechet_distance(torch.zeros(1, 2), torch.zeros(3, 2))
