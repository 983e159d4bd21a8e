"""The detector: shapes, its mixtures against dense convolutions, its dense twin, gradients everywhere."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F  # noqa: N812  # torch's own customary name

import mixtura as mx
from mixtura.errors import UserError
from mixtura.models.count import count_parameters
from mixtura.models.detector import Around, AroundMixture, Detector, DetectorConfig, windows
from mixtura.models.objects import Objects, detection_losses

TINY = DetectorConfig(width=8, dim=16, hidden=16, num_experts=4, num_classes=3)


def two_objects() -> Objects:
    boxes = torch.tensor([[1.0, 1.0, 9.0, 9.0], [8.0, 4.0, 30.0, 28.0]])
    return Objects(boxes=boxes, labels=torch.tensor([0, 2]), image=torch.tensor([0, 1]))


@pytest.mark.parametrize("dilation", [1, 2, 3])
def test_a_linear_map_of_windows_is_a_convolution(dilation):
    x, weight = torch.randn(2, 3, 6, 5), torch.randn(4, 3, 3, 3)
    expected = F.conv2d(x, weight, dilation=dilation, padding=dilation).flatten(2).transpose(1, 2)
    torch.testing.assert_close(windows(x, dilation=dilation) @ weight.view(4, -1).T, expected)


class TestAroundMixture:
    def test_each_cell_has_its_experts_convolution(self):
        layer = AroundMixture(3, 5, dilations=(1, 2, 3)).eval()
        maps = [torch.randn(2, 3, 6, 4), torch.randn(2, 3, 3, 2)]
        with mx.record(layer) as log:
            found = layer(maps)
        routing = log["moe"][0].routing
        assert routing.counts_E().gt(0).sum() > 1
        dense = []
        for expert, dilation in enumerate(layer.dilations):
            weight = layer.moe.experts[expert].linear.weight.view(5, 3, 3, 3)
            whole = [F.conv2d(x, weight, dilation=dilation, padding=dilation).flatten(2).transpose(1, 2) for x in maps]
            dense.append(torch.cat(whole, dim=1).reshape(-1, 5))
        expected = torch.stack(dense)[routing.expert_N, routing.token_N] * routing.weight_N[:, None]
        torch.testing.assert_close(found.reshape(-1, 5), expected, rtol=1e-4, atol=1e-5)

    def test_the_gate_sees_the_nearest_window(self):
        layer = AroundMixture(2, 4, dilations=(1, 2))
        token = torch.randn(7, 2 * 18)
        scores = layer.moe.router.gate(token)
        torch.testing.assert_close(scores, token[:, :18] @ layer.moe.router.gate.linear.weight.T)

    def test_as_many_active_parameters_as_a_plain_convolution_and_a_gate(self):
        mixed, plain = AroundMixture(4, 8, dilations=(1, 2, 3)), Around(4, 8, dilation=1)
        assert count_parameters(mixed).active == count_parameters(plain).active + 36 * 3


class TestDetector:
    @pytest.mark.parametrize("num_experts", [4, 0])
    def test_says_something_of_every_cell(self, num_experts):
        model = Detector(replace(TINY, num_experts=num_experts, channels=3))
        output = model(torch.randn(2, 3, 32, 48))
        assert output.logits.shape == (2, 8 * 12 + 4 * 6, 3)
        assert (output.boxes[..., 2:] > output.boxes[..., :2]).all()
        middle = (output.boxes[..., :2] + output.boxes[..., 2:]) / 2
        assert ((middle - output.grid.centre).abs() < output.grid.stride[:, None]).all()
        assert torch.sigmoid(output.logits).mean().item() == pytest.approx(0.01, abs=0.005)

    @pytest.mark.parametrize("num_experts", [4, 0])
    def test_everything_learns(self, num_experts):
        torch.manual_seed(1)
        model = Detector(replace(TINY, num_experts=num_experts, dilations=(1, 2)))
        losses = detection_losses(model(torch.randn(2, 1, 32, 32)), two_objects())
        (losses.by_class.sum() + losses.boxes.sum()).backward()
        without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
        assert [name for name in without if "experts" not in name] == []

    def test_a_few_steps_make_the_loss_smaller(self):
        model = Detector(TINY)
        images, objects = torch.randn(2, 1, 32, 32), two_objects()
        optimizer, seen = torch.optim.AdamW(model.parameters(), lr=3e-3), []
        for _ in range(40):
            losses = detection_losses(model(images), objects)
            loss = (losses.by_class.sum() + losses.boxes.sum()) / losses.cells.sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            seen.append(loss.item())
        assert seen[-1] < 0.7 * seen[0]

    def test_both_mixtures_route_the_cells_of_all_maps(self):
        model = Detector(TINY).eval()
        with mx.record(model) as log:
            model(torch.randn(2, 1, 32, 32))
        assert {name: each[0].routing.num_tokens for name, each in log.items()} == {"around.moe": 160, "head": 160}

    def test_a_router_may_know_the_map_of_a_cell(self):
        model = Detector(replace(TINY, router="hash", losses={}, router_options={"vocab_size": 2})).eval()
        with mx.record(model) as log:
            model(torch.randn(1, 1, 16, 16))
        chosen = log["head"][0].first_choice_T()
        assert len(chosen[:16].unique()) == len(chosen[16:].unique()) == 1

    @pytest.mark.parametrize(("router", "k"), [("switch", 1), ("topk", 2)])
    def test_the_dense_twin_has_as_many_active_parameters(self, router, k):
        config = DetectorConfig(k=k, router=router)
        sparse, dense = (count_parameters(Detector(replace(config, num_experts=n))) for n in (8, 0))
        assert dense.active == dense.total
        assert sparse.active == pytest.approx(dense.active, rel=0.02)
        assert sparse.total > 1.3 * sparse.active

    def test_fresh_weights_after_reset(self):
        model = Detector(TINY)
        before = {name: p.clone() for name, p in model.named_parameters()}
        with torch.no_grad():
            for p in model.parameters():
                p.fill_(torch.nan)
        model.reset_parameters()
        assert all(p.isfinite().all() for p in model.parameters())
        assert torch.equal(model.out.bias, before["out.bias"])

    @pytest.mark.parametrize("shape", [(1, 1, 30, 32), (1, 1, 32, 36), (1, 3, 32, 32)])
    def test_images_of_another_shape_are_refused(self, shape):
        with pytest.raises(UserError, match=r"expected images of shape \(B, 1, H, W\) with H and W multiples of 8"):
            Detector(TINY)(torch.zeros(shape))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"width": 0}, "expected width of at least 1, got 0"),
        ({"dim": 20}, "expected dim that is a multiple of 8, got 20"),
        ({"num_experts": -1}, "expected num_experts of at least 0"),
        ({"dilations": ()}, "expected dilations of at least 1, got none"),
        ({"dilations": (1, 0)}, "expected dilations of at least 1"),
    ],
)
def test_values_out_of_range(options, told):
    with pytest.raises(UserError, match=told):
        DetectorConfig(**options)
