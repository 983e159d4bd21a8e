"""Average precision: perfect, missing, wrong and doubled detections by hand; sizes; crowds."""

import subprocess
import sys

import pytest
import torch

from mixtura.models.objects import Detections, Objects
from mixtura.train.data.boxed import BoxedSet
from mixtura.train.tasks.precision import average_precision

SMALL, LARGE = [0.0, 0.0, 4.0, 4.0], [10.0, 10.0, 30.0, 30.0]


def truth_of(*each, images=2, crowd=()) -> BoxedSet:
    """Each: image, label, box."""
    image, labels, boxes = zip(*each, strict=True)
    objects = Objects(boxes=torch.tensor(boxes), labels=torch.tensor(labels), image=torch.tensor(image))
    pixels = torch.zeros(images, 1, 32, 32, dtype=torch.uint8)
    return BoxedSet(images=pixels, objects=objects, crowd=torch.tensor([m in crowd for m in range(len(each))]))


def found_in(*each) -> Detections:
    """Each: score, label, box, best first."""
    scores, labels, boxes = zip(*each, strict=True) if each else ((), (), ())
    labels = torch.tensor(labels, dtype=torch.long)
    return Detections(
        boxes=torch.tensor(boxes).view(-1, 4), scores=torch.tensor(scores), labels=labels, cell=torch.zeros_like(labels)
    )


def judged(truth, *found, classes=2):
    return average_precision(truth, found, classes=classes, small=64.0)


TRUTH = ((0, 0, SMALL), (0, 1, LARGE), (1, 0, LARGE))


def test_everything_found():
    found = found_in((0.9, 0, SMALL), (0.8, 1, LARGE)), found_in((0.7, 0, LARGE))
    assert judged(truth_of(*TRUTH), *found).scores() == {"mAP": 1, "mAP50": 1, "mAP small": 1, "mAP large": 1}


def test_nothing_found():
    assert judged(truth_of(*TRUTH), found_in(), found_in()).scores()["mAP"] == 0


def test_half_of_a_class_found():
    found = found_in((0.9, 0, SMALL)), found_in()
    precision = judged(truth_of(*TRUTH), *found)
    assert precision.mean[0, 0].item() == pytest.approx(51 / 101)  # recalls 0, 0.01 ... 0.5 of 0, 0.01 ... 1
    assert precision.mean[0].tolist()[1:] == pytest.approx([1, 0])
    assert precision.mean[1, 0] == 0
    assert precision.scores()["mAP"] == pytest.approx(51 / 202, abs=1e-6)


def test_a_better_scored_mistake_costs_half():
    found = found_in((0.9, 0, [20.0, 20.0, 24.0, 24.0]), (0.5, 0, SMALL)), found_in()
    precision = judged(truth_of((0, 0, SMALL)), *found, classes=1)
    assert precision.mean[0, 0].item() == pytest.approx(0.5)


def test_a_second_box_on_the_same_object_is_a_mistake():
    twice = found_in((0.9, 0, SMALL), (0.8, 0, SMALL)), found_in((0.7, 0, LARGE))
    precision = judged(truth_of(*TRUTH), *twice)
    assert precision.mean[0, 0].item() == pytest.approx((51 + 50 * 2 / 3) / 101, abs=1e-6)


def test_a_box_that_overlaps_by_0_72_counts_up_to_0_70():
    box = [10.0, 10.0, 30.0, 10.0 + 20 * 0.72]
    precision = judged(truth_of((0, 0, LARGE)), found_in((0.9, 0, box)), found_in(), classes=1)
    assert precision.mean[0, 0].item() == pytest.approx(5 / 10)
    assert precision.half[0, 0].item() == pytest.approx(1)


def test_nobody_is_blamed_for_a_crowd():
    truth = truth_of((0, 0, SMALL), (0, 0, LARGE), crowd=(1,))
    found = found_in((0.9, 0, [12.0, 12.0, 20.0, 20.0]), (0.5, 0, SMALL)), found_in()
    assert judged(truth, *found, classes=1).scores()["mAP"] == 1


def test_a_class_without_objects_has_no_precision():
    precision = judged(truth_of((0, 0, SMALL)), found_in((0.9, 0, SMALL)), found_in())
    assert precision.mean[1].isnan().all()
    assert precision.scores() == {"mAP": 1, "mAP50": 1, "mAP small": 1}


def test_nothing_is_printed(capsys):
    judged(truth_of(*TRUTH), found_in(), found_in())
    assert capsys.readouterr().out == ""


def test_without_its_package_the_extra_is_named():
    code = (
        "import sys; sys.modules['pycocotools'] = None\n"
        "from mixtura.errors import UserError\n"
        "try: import mixtura.train.tasks.precision\n"
        "except UserError as error: print(error)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "pip install 'mixtura[detect]'" in told
