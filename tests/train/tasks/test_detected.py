"""What the report shows of a detector: counts against the routing itself, outlines, tables."""

import base64
import struct
from dataclasses import replace

import pytest
import torch

import mixtura as mx
from mixtura.models.detector import Detector
from mixtura.models.objects import Grid, assign
from mixtura.train.data.boxed import BoxedBatch
from mixtura.train.tasks.detected import draw, experts_of_cells, look
from tests.train.tasks.test_detection import tiny_task


def test_experts_of_cells_against_a_loop():
    task = tiny_task()
    model = task.config.build_model().eval()
    found = experts_of_cells(model, task)
    images = BoxedBatch.of(task.images.val).images
    with mx.record(model) as log:
        model(images)
    grid, objects = Grid.of(8, 8), task.images.val.objects
    owner = assign(objects, grid, images=2)
    for name, counts in found.items():
        first = log[name][0].first_choice_T().view(2, -1)
        expected = torch.zeros_like(counts)
        for image in range(2):
            for cell in range(5):
                label = int(objects.labels[owner[image, cell]]) if owner[image, cell] >= 0 else 2
                expected[int(grid.level[cell]), label, int(first[image, cell])] += 1
        assert counts.tolist() == expected.tolist()
    assert list(found) == ["around.moe", "head"]


def test_panels():
    task = tiny_task()
    seen = look(task.config.build_model().eval(), task)
    assert seen["domains"] == ["a", "b", "background"]
    picture, table, *maps = seen["panels"]
    assert struct.unpack(">II", base64.b64decode(picture["png"])[16:24]) == (2 * 257, 257)
    assert "1: a; found: nothing. 2: b; found: nothing." in picture["note"]
    assert [row[:2] for row in table["rows"]] == [["a", 1], ["b", 1], ["mean", 2]]
    assert [each["title"] for each in maps] == ["Experts by scale, around.moe", "Experts by scale, head"]
    for each in maps:
        assert each["rows"][-1] == "all cells"
        assert sum(each["values"][-1]) == pytest.approx(1, abs=1e-3)


def test_a_dense_detector_has_no_maps_of_experts():
    task = tiny_task()
    model = Detector(replace(task.config.model, num_experts=0)).eval()
    seen = look(model, task)
    assert seen["layers"] == {}
    assert [panel["kind"] for panel in seen["panels"]] == ["picture", "table"]


def test_outlines_lie_on_the_boxes_border_and_inside_the_image():
    image = torch.zeros(3, 6, 8, dtype=torch.uint8)
    draw(image, torch.tensor([[2.0, 1.0, 8.4, 5.0]]), colour=(9, 8, 7))
    assert image[0].tolist() == [
        [0] * 8,
        [0, 0, 9, 9, 9, 9, 9, 9],
        [0, 0, 9, 0, 0, 0, 0, 9],
        [0, 0, 9, 0, 0, 0, 0, 9],
        [0, 0, 9, 9, 9, 9, 9, 9],
        [0] * 8,
    ]
    assert image[:, 1, 2].tolist() == [9, 8, 7]
