"""Patches: where each lies, back to images, other shapes."""

import pytest
import torch

from mixtura import UserError
from mixtura.models.patches import check_images, images_of, patches_of


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


def test_images_of_another_shape_are_refused():
    with pytest.raises(UserError, match=r"expected images of shape \(B, 3, 8, 8\), got \(2, 1, 8, 8\)"):
        check_images(torch.zeros(2, 1, 8, 8), channels=3, size=8)
