"""What each cell learns and what is found, against loops over objects and cells."""

import math

import pytest
import torch

from mixtura.models.boxes import focal_loss, giou, iou
from mixtura.models.objects import STRIDES, Grid, Objects, Output, assign, detect, detection_losses


def objects_of(*each: tuple[int, int, list[float]]) -> Objects:
    """Each: image, label, box."""
    image, labels, boxes = zip(*each, strict=True)
    return Objects(boxes=torch.tensor(boxes), labels=torch.tensor(labels), image=torch.tensor(image))


def many_objects(images: int, *, size: int) -> Objects:
    image = torch.arange(images).repeat_interleave(6)
    side = 2 + torch.rand(len(image), 2) * (size / 2 - 2)
    corner = torch.rand(len(image), 2) * (size - side)
    return Objects(boxes=torch.cat([corner, corner + side], 1), labels=torch.randint(0, 3, (len(image),)), image=image)


def by_loop(objects: Objects, grid: Grid, images: int) -> list[list[int]]:
    owners = [[-1] * len(grid.level) for _ in range(images)]
    for cell, (x, y) in enumerate(grid.centre.tolist()):
        stride, level = int(grid.stride[cell]), int(grid.level[cell])
        for m, (left, top, right, bottom) in enumerate(objects.boxes.tolist()):
            longest = max(right - left, bottom - top)
            if level != (0 if longest <= 16 else 1):
                continue
            away = max(abs(x - (left + right) / 2), abs(y - (top + bottom) / 2)) / stride
            inside = left < x < right and top < y < bottom
            if away <= 0.5 or (inside and away <= 1.5):
                row = owners[int(objects.image[m])]
                area = (right - left) * (bottom - top)
                before = objects.boxes[row[cell]].tolist()
                if row[cell] < 0 or area < (before[2] - before[0]) * (before[3] - before[1]):
                    row[cell] = m
    return owners


class TestGrid:
    def test_cells_lie_row_by_row_map_by_map(self):
        grid = Grid.of(8, 16)
        assert grid.centre.tolist() == [
            *[[x, y] for y in (2.0, 6.0) for x in (2.0, 6.0, 10.0, 14.0)],
            [4.0, 4.0],
            [12.0, 4.0],
        ]
        assert grid.level.tolist() == [0] * 8 + [1] * 2
        assert grid.stride.tolist() == [STRIDES[0]] * 8 + [STRIDES[1]] * 2


class TestAssign:
    @pytest.mark.parametrize("seed", range(4))
    def test_against_a_loop(self, seed):
        torch.manual_seed(seed)
        objects, grid = many_objects(3, size=48), Grid.of(48, 48)
        found = assign(objects, grid, images=3)
        assert found.tolist() == by_loop(objects, grid, 3)
        assert (found >= 0).any()

    def test_each_map_has_its_sizes(self):
        objects = objects_of((0, 0, [0.0, 0.0, 16.0, 4.0]), (1, 0, [0.0, 0.0, 17.0, 4.0]))
        grid = Grid.of(32, 32)
        owner = assign(objects, grid, images=2)
        levels = [grid.level[owner[image] == image].unique().tolist() for image in (0, 1)]
        assert levels == [[0], [1]]

    def test_the_smallest_object_has_a_cell_and_the_smaller_of_two_wins(self):
        objects = objects_of((0, 0, [0.0, 0.0, 12.0, 12.0]), (0, 1, [6.5, 6.5, 7.0, 7.0]))
        owner = assign(objects, Grid.of(16, 16), images=1)[0, :16].view(4, 4)
        assert owner.tolist() == [[0, 0, 0, -1], [0, 1, 0, -1], [0, 0, 0, -1], [-1] * 4]

    def test_without_objects(self):
        none = Objects(boxes=torch.zeros(0, 4), labels=torch.zeros(0).long(), image=torch.zeros(0).long())
        assert assign(none, Grid.of(8, 8), images=2).tolist() == [[-1] * 5] * 2


def some_output(images: int, *, size: int, classes: int = 3, requires_grad: bool = False) -> Output:
    grid = Grid.of(size, size)
    number = len(grid.level)
    half = 1 + 8 * torch.rand(images, number, 2, dtype=torch.float64)
    boxes = torch.cat([grid.centre - half, grid.centre + half], dim=-1)
    logits = torch.randn(images, number, classes, dtype=torch.float64)
    return Output(logits.requires_grad_(requires_grad), boxes.requires_grad_(requires_grad), grid)


class TestLosses:
    def test_against_a_loop(self):
        objects, output = many_objects(2, size=32), some_output(2, size=32)
        found = detection_losses(output, objects)
        owners = by_loop(objects, output.grid, 2)
        by_class, boxes, cells = torch.zeros(3, 3, dtype=torch.float64).unbind()
        for image, row in enumerate(owners):
            for cell, owner in enumerate(row):
                there = torch.zeros(3, dtype=torch.float64)
                if owner >= 0:
                    label = objects.labels[owner]
                    there[label] = 1
                    boxes[label] += 1 - giou(output.boxes[image, cell], objects.boxes[owner].double())
                    cells[label] += 1
                by_class += focal_loss(output.logits[image, cell], there)
        torch.testing.assert_close(found.by_class, by_class)
        torch.testing.assert_close(found.boxes, boxes)
        assert found.cells.tolist() == cells.tolist()

    def test_gradients(self):
        objects, output = many_objects(1, size=16), some_output(1, size=16)

        def total(logits, boxes):
            losses = detection_losses(Output(logits, boxes, output.grid), objects)
            return losses.by_class.sum() + losses.boxes.sum()

        inputs = output.logits.requires_grad_(), output.boxes.requires_grad_()
        assert torch.autograd.gradcheck(total, inputs)

    def test_images_without_objects_have_no_loss_of_boxes(self):
        none = Objects(boxes=torch.zeros(0, 4), labels=torch.zeros(0).long(), image=torch.zeros(0).long())
        losses = detection_losses(some_output(2, size=16), none)
        assert losses.boxes.tolist() == losses.cells.tolist() == [0, 0, 0]
        assert (losses.by_class > 0).all()


class TestDetect:
    def test_what_the_cells_say_comes_back(self):
        grid = Grid.of(16, 16)
        logits, boxes = torch.full((2, 20, 3), -9.0), torch.zeros(2, 20, 4)
        boxes[:] = torch.tensor([0.0, 0.0, 1.0, 1.0])
        for cell, label, p, box in (
            (5, 2, 0.9, [2, 2, 9, 9]),
            (6, 2, 0.8, [2, 2, 9, 8]),
            (17, 0, 0.7, [-3, 4, 20, 15]),
        ):
            logits[0, cell, label], boxes[0, cell] = math.log(p / (1 - p)), torch.tensor(box, dtype=torch.float32)
        first, second = detect(Output(logits, boxes, grid), size=(16, 16))
        assert first.labels.tolist() == [2, 0]
        assert first.cell.tolist() == [5, 17]
        assert first.scores.tolist() == pytest.approx([0.9, 0.7])
        assert first.boxes.tolist() == [[2, 2, 9, 9], [0, 4, 16, 15]]  # one suppressed, one cut off at the border
        assert len(second.scores) == 0

    def test_no_more_than_asked_for_the_best_and_no_overlap(self):
        found = detect(some_output(1, size=64), size=(64, 64), threshold=0.3, most_overlap=0.4, most=20)[0]
        assert len(found.scores) == 20
        assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)
        overlap = iou(found.boxes[:, None], found.boxes)
        same = (found.labels[:, None] == found.labels).triu(1)
        assert (overlap[same] <= 0.4).all()
