"""Overlaps, losses and the choice among overlapping boxes, against numbers by hand and loops."""

import math

import pytest
import torch

from mixtura.models.boxes import areas, focal_loss, giou, iou, keep_best


def box(*sides: float) -> torch.Tensor:
    return torch.tensor(sides, dtype=torch.float64)


def some_boxes(number: int) -> torch.Tensor:
    corner = torch.rand(number, 2) * 20
    return torch.cat([corner, corner + 1 + torch.rand(number, 2) * 10], dim=1)


class TestOverlap:
    @pytest.mark.parametrize(
        ("a", "b", "shared", "together", "hull"),
        [
            (box(0, 0, 4, 4), box(0, 0, 4, 4), 16, 16, 16),
            (box(0, 0, 4, 4), box(2, 1, 6, 3), 4, 20, 24),
            (box(0, 0, 2, 2), box(4, 0, 6, 2), 0, 8, 12),
            (box(0, 0, 10, 10), box(4, 4, 5, 5), 1, 100, 100),
            (box(0, 0, 2, 2), box(2, 2, 4, 4), 0, 8, 16),
        ],
        ids=["same", "across", "apart", "inside", "corner"],
    )
    def test_by_hand(self, a, b, shared, together, hull):
        assert iou(a, b).item() == pytest.approx(shared / together)
        assert giou(a, b).item() == pytest.approx(shared / together - (hull - together) / hull)
        assert giou(b, a) == giou(a, b)

    def test_all_pairs_against_a_loop(self):
        a, b = some_boxes(5), some_boxes(7)
        both = iou(a[:, None], b)
        assert both.shape == (5, 7)
        for i in range(5):
            for j in range(7):
                w = max(0, min(a[i, 2], b[j, 2]) - max(a[i, 0], b[j, 0]))
                h = max(0, min(a[i, 3], b[j, 3]) - max(a[i, 1], b[j, 1]))
                expected = w * h / (areas(a[i]) + areas(b[j]) - w * h)
                assert both[i, j].item() == pytest.approx(float(expected), abs=1e-6)

    def test_gradient_where_boxes_do_not_meet(self):
        a = box(0, 0, 2, 2).requires_grad_()
        giou(a, box(6, 0, 8, 2)).backward()
        assert a.grad[2] > 0  # the right side has to go right

    def test_gradient_of_giou(self):
        a, b = (some_boxes(6).double() for _ in range(2))
        assert torch.autograd.gradcheck(lambda x: giou(x, b), a.requires_grad_())


class TestFocalLoss:
    @pytest.mark.parametrize(
        ("p", "there", "expected"),
        [
            (0.9, 1, 0.25 * 0.1**2 * -math.log(0.9)),
            (0.9, 0, 0.75 * 0.9**2 * -math.log(0.1)),
            (0.2, 1, 0.25 * 0.8**2 * -math.log(0.2)),
        ],
    )
    def test_by_hand(self, p, there, expected):
        logit = torch.tensor([math.log(p / (1 - p))], dtype=torch.float64)
        assert focal_loss(logit, torch.tensor([float(there)])).item() == pytest.approx(expected)

    def test_gamma_0_and_alpha_a_half_is_half_the_cross_entropy(self):
        logits, there = torch.randn(50), (torch.rand(50) < 0.5).float()
        plain = torch.nn.functional.binary_cross_entropy_with_logits(logits, there, reduction="none")
        torch.testing.assert_close(focal_loss(logits, there, alpha=0.5, gamma=0.0), plain / 2)

    def test_gradient_and_huge_logits(self):
        there = torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)
        logits = torch.tensor([0.3, -2.0, 1.5], dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda x: focal_loss(x, there), logits)
        extreme = torch.tensor([1000.0, -1000.0, -1000.0], requires_grad=True)
        loss = focal_loss(extreme, there.float())
        loss.sum().backward()
        assert loss.tolist() == [0.0, 0.0, 250.0]
        assert extreme.grad.isfinite().all()


class TestKeepBest:
    @staticmethod
    def one_by_one(boxes, scores, labels, most_overlap):
        kept: list[int] = []
        for i in sorted(range(len(scores)), key=lambda i: (-scores[i].item(), i)):
            if all(labels[i] != labels[j] or iou(boxes[i], boxes[j]) <= most_overlap for j in kept):
                kept.append(i)
        return kept

    @pytest.mark.parametrize("seed", range(8))
    def test_against_deciding_one_by_one(self, seed):
        torch.manual_seed(seed)
        boxes, labels = some_boxes(60), torch.randint(0, 3, (60,))
        scores = (torch.rand(60) * 10).round() / 10  # with ties
        expected = self.one_by_one(boxes, scores, labels, 0.3)
        assert 5 < len(expected) < 60
        assert keep_best(boxes, scores, labels, most_overlap=0.3).tolist() == expected

    def test_a_chain_keeps_every_other_one(self):
        left = torch.arange(9.0)
        boxes = torch.stack([left, left * 0, left + 2, left * 0 + 2], dim=1)  # neighbours overlap by a third
        scores = torch.linspace(1, 0.2, 9)
        kept = keep_best(boxes, scores, torch.zeros(9), most_overlap=0.3)
        assert kept.tolist() == [0, 2, 4, 6, 8]

    def test_none(self):
        assert keep_best(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0), most_overlap=0.5).tolist() == []
