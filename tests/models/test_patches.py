"""Patches: where each lies, back to images, sizes that do not fit."""

import pytest
import torch

from mixtura import UserError
from mixtura.models.patches import PatchesConfig, check_images, images_of, patches_of


def test_patches_are_cut_row_by_row():
    image = torch.arange(2 * 3 * 4 * 6).view(2, 3, 4, 6)
    cut = patches_of(image, 2)
    assert cut.shape == (2, 6, 12)
    for number in range(6):
        row, column = divmod(number, 3)
        expected = image[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        assert torch.equal(cut[:, number], expected.flatten(1))


@pytest.mark.parametrize("size", [1, 2, 3, 6])
def test_images_come_back(size):
    images = torch.randn(2, 3, 6, 6)
    assert torch.equal(images_of(patches_of(images, size), size=size, channels=3), images)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"patch_size": 3}, "expected patch_size that divides image_size=28, got patch_size=3"),
        ({"patch_size": 0}, "expected patch_size of at least 1, got 0"),
        ({"channels": 0}, "expected channels of at least 1, got 0"),
        ({"image_size": -4}, "expected patch_size that divides image_size=-4, got patch_size=4"),
    ],
)
def test_impossible_sizes(changed, message):
    with pytest.raises(UserError, match=message):
        PatchesConfig(**changed)


def test_a_size_that_is_not_known_yet():
    with pytest.raises(UserError, match="expected image_size of at least 1, got 0"):
        _ = PatchesConfig(image_size=0).patches


def test_images_of_another_shape_are_refused():
    with pytest.raises(UserError, match=r"expected images of shape \(B, 3, 8, 8\), got \(2, 1, 8, 8\)"):
        check_images(torch.zeros(2, 1, 8, 8), channels=3, size=8)
