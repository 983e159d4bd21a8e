"""What both tasks on images share: sizes of the data, names, streams."""

import pytest
import torch

from mixtura.errors import UserError
from mixtura.models.dit import DiTConfig
from mixtura.models.vit import ViTConfig
from mixtura.train.data.images import ImageConfig, Images, ImageSet
from mixtura.train.tasks.image_task import check_sizes, fitted, sizes_to_try
from mixtura.train.tasks.vision import VisionConfig, VisionTask


def images_of(size: int = 8, channels: int = 3, classes: tuple[str, ...] = ("a", "b")) -> Images:
    pixels = torch.arange(4, dtype=torch.uint8).view(-1, 1, 1, 1).expand(4, channels, size, size).contiguous()
    part = ImageSet(pixels, torch.tensor([0, 1, 0, 1]))
    return Images(name="t", classes=classes, train=part, val=part)


@pytest.mark.parametrize("kind", [ViTConfig, DiTConfig])
def test_sizes_are_those_of_the_data(kind):
    model = fitted(kind(image_size=0, patch_size=2, num_experts=4), images_of())
    assert (model.image_size, model.channels, model.num_classes, model.num_experts) == (8, 3, 2, 4)
    assert type(model) is kind


def test_patches_that_do_not_fit_are_refused_with_those_that_do():
    with pytest.raises(UserError, match="that divides the 8 pixels of the images, got 3; 2 does"):
        fitted(ViTConfig(image_size=0, patch_size=3), images_of())


def test_no_class_is_named_like_the_mean():
    with pytest.raises(UserError, match="expected classes of any name but 'mean'"):
        fitted(ViTConfig(image_size=0, patch_size=2), images_of(classes=("a", "mean")))


@pytest.mark.parametrize(("name", "value"), [("num_classes", 3), ("channels", 3), ("image_size", 28)])
def test_sizes_that_belong_to_the_data_are_refused(name, value):
    sizes = {"image_size": 0, name: value}
    with pytest.raises(UserError, match=f"no --model.{name.replace('_', '-')}, got {value}; it comes from the data"):
        check_sizes(ViTConfig(**sizes))


def test_a_model_can_be_tried_before_its_data_are_read():
    assert sizes_to_try(ViTConfig(image_size=0, patch_size=5)).patches == 1
    assert sizes_to_try(ViTConfig(image_size=8, patch_size=2)).patches == 16


def test_the_task_hands_out_names_streams_and_classes(tmp_path):
    config = VisionConfig(model=ViTConfig(image_size=0, patch_size=2), data=ImageConfig(batch_size=3, crop=0))
    task = VisionTask.of(config, images_of())
    assert task.name == task.images.fingerprint
    task.save(tmp_path)
    assert (tmp_path / "classes.txt").read_text() == "a\nb\n"
    assert task.summary() == task.images.report()
    assert next(task.stream(rank=1, world_size=2)).images.shape == (3, 3, 8, 8)
    seen = torch.cat([batch.labels_B for batch in task.of_class(1)])
    assert seen.tolist() == [1, 1]
