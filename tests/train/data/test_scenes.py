"""Composed scenes: true boxes, disjoint sources, the same ones every time; and where they come from."""

import warnings
from dataclasses import replace

import pytest
import torch

from mixtura.errors import UserError
from mixtura.models.objects import Objects
from mixtura.train.data import scenes
from mixtura.train.data.boxed import BoxedImages
from mixtura.train.data.images import ImageConfig, ImageSet, read_images
from mixtura.train.data.scenes import SceneConfig, composed, read_scenes, scene
from tests.train.data.made import write_mnist
from tests.train.data.test_boxed import some_set


def blocks(*values: int) -> ImageSet:
    """Images of 8 x 8 with a block of 4 wide and 6 high in the middle, one of each grey value."""
    pixels = torch.zeros(len(values), 1, 8, 8, dtype=torch.uint8)
    pixels[:, :, 1:7, 2:6] = torch.tensor(values, dtype=torch.uint8).view(-1, 1, 1, 1)
    return ImageSet(pixels, torch.arange(len(values)))


def one(config: SceneConfig, sources: ImageSet, seed: int = 0):
    return scene(config, sources, generator=torch.Generator().manual_seed(seed))


class TestScene:
    @pytest.mark.parametrize("seed", range(5))
    def test_boxes_are_tight_around_each_objects_own_pixels(self, seed):
        config = SceneConfig(smallest=8, largest=20, fewest=3, most=5)
        pixels, boxes, labels = one(config, blocks(50, 100, 150, 200), seed)
        left = pixels.clone()
        for (x0, y0, x1, y1), label in zip(boxes.int().tolist(), labels.tolist(), strict=True):
            inside = pixels[0, y0:y1, x0:x1]
            assert (inside >= 50 * (label + 1)).all()  # a block fills its box, and an overlap is brighter
            assert abs((x1 - x0) - (y1 - y0) * 4 / 6) <= 0.5  # keeps its proportions
            assert 8 <= y1 - y0 <= 20
            left[0, y0:y1, x0:x1] = 0
        assert left.sum() == 0
        assert len(boxes) >= 1

    def test_objects_hardly_hide_one_another_and_lie_inside(self):
        sources = read_images(ImageConfig()).train
        config = SceneConfig(fewest=7, most=7)
        counts = []
        for seed in range(20):
            _, boxes, labels = one(config, sources, seed)
            assert boxes.min() >= 0
            assert boxes.max() <= 64
            counts.append(len(labels))
            areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
            for i in range(len(boxes)):
                for j in range(i):
                    shared = torch.minimum(boxes[i, 2:], boxes[j, 2:]) - torch.maximum(boxes[i, :2], boxes[j, :2])
                    assert shared.clamp(min=0).prod() <= 0.15 * torch.minimum(areas[i], areas[j]) + 1e-4
        assert max(counts) == 7

    def test_an_image_without_anything_visible_is_an_object_of_its_whole_size(self):
        _, boxes, _ = one(SceneConfig(fewest=1, most=1, smallest=16, largest=16), blocks(0))
        assert (boxes[:, 2:] - boxes[:, :2]).tolist() == [[16.0, 16.0]]


class TestComposed:
    CONFIG = SceneConfig(scenes=6, val_scenes=4)

    def test_the_same_every_time_and_others_with_another_seed(self):
        a, b = composed(self.CONFIG), composed(self.CONFIG)
        assert a.fingerprint == b.fingerprint != composed(replace(self.CONFIG, seed=1)).fingerprint
        more = composed(replace(self.CONFIG, scenes=8))
        assert torch.equal(more.train.images[:6], a.train.images)

    def test_no_source_is_in_both_parts(self, monkeypatch):
        seen = {}
        monkeypatch.setattr(
            scenes, "_compose", lambda config, sources, *, name, count: seen.setdefault(name, sources) and some_set()
        )
        composed(self.CONFIG)
        together = torch.cat([part.images for part in seen.values()]).flatten(1)
        assert len(together) == len(together.unique(dim=0)) == 1797

    @pytest.mark.parametrize("options", [{"smallest": 40}, {"largest": 65}, {"smallest": 0}])
    def test_objects_that_do_not_fit(self, options):
        with pytest.raises(UserError, match="expected 1 <= "):
            composed(replace(self.CONFIG, **options))

    def test_it_says_of_how_many_images(self):
        assert composed(self.CONFIG).report()[-1] == (
            "composed of 1,442 images for training and 355 others for what is held out"
        )


class TestRead:
    def test_a_folder_in_the_format_of_mnist(self, tmp_path):
        folder = write_mnist(tmp_path / "mine")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # three pixels wide, so some are dark
            images = read_scenes(SceneConfig(path=str(folder), scenes=3, val_scenes=2))
        assert (images.name, len(images.train), images.classes) == ("scenes of mine", 3, ("0", "1"))

    def test_fashion_needs_its_package(self, monkeypatch, tmp_path):
        monkeypatch.setattr("mixtura.train.data.mnist.FASHION_FOLDER", tmp_path)
        with pytest.raises(UserError, match="sudo apt-get install dataset-fashion-mnist"):
            read_scenes(SceneConfig(path="fashion-mnist"))

    def test_nothing_there(self):
        with pytest.raises(UserError, match="no/such: expected a folder in the format of COCO or 'fashion-mnist'"):
            read_scenes(SceneConfig(path="no/such"))


class TestClasses:
    @staticmethod
    def with_labels(labels: list[int], *, classes=("a", "b")) -> BoxedImages:
        part = some_set((len(labels),), crowd=())
        part = replace(part, objects=replace(part.objects, labels=torch.tensor(labels, dtype=torch.long)))
        return BoxedImages(name="t", classes=classes, train=part, val=part)

    def test_one_class_is_warned_of(self):
        with pytest.warns(UserWarning, match="expected boxes of several classes, got 95% of them in 'b'"):
            scenes._check_classes(self.with_labels([1] * 19 + [0]))

    def test_a_single_class_is_what_was_asked_for(self):
        scenes._check_classes(self.with_labels([0] * 20, classes=("face",)))

    def test_no_boxes_at_all(self):
        empty = BoxedImages(name="t", classes=("a",), train=some_set((1,), crowd=(0,)), val=some_set((1,), crowd=()))
        with pytest.raises(UserError, match="t: expected boxes to train on, got none in 1 images"):
            scenes._check_classes(empty)
        assert isinstance(empty.train.learned(), Objects)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"scenes": 0}, "data.scenes: expected at least 1, got 0"),
        ({"image_size": 60}, "data.image_size: expected a multiple of 8, got 60"),
        ({"val_fraction": 0.6}, "data.val_fraction: expected more than 0 and at most 0.5, got 0.6"),
        ({"most": 1}, "data.most: expected at least data.fewest = 2, got 1"),
        ({"seed": -1}, "data.seed: expected 0 or more, got -1"),
    ],
)
def test_values_out_of_range(options, told):
    with pytest.raises(UserError, match=told):
        SceneConfig(**options)
