"""Images from every source: the digits, splits by class, counts, settings out of range."""

import pytest
import torch

from mixtura.errors import UserError
from mixtura.train.data.images import ImageConfig, read_images
from tests.train.data.made import refused


class TestDigits:
    def test_every_class_gives_the_same_share(self):
        images = read_images(ImageConfig(val_fraction=0.25))
        train, val = (part.labels.bincount() for part in (images.train, images.val))
        assert (train + val).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
        assert val.tolist() == [n // 4 for n in (train + val).tolist()]
        assert images.train.images.max() == 255
        assert images.train.images.dtype == torch.uint8

    def test_no_image_is_in_both_parts_and_the_seed_chooses(self):
        a, b, again = (read_images(ImageConfig(seed=seed)) for seed in (0, 1, 0))
        assert a.fingerprint == again.fingerprint != b.fingerprint
        together = torch.cat([a.train.images, a.val.images]).flatten(1)
        assert len(together) == len(together.unique(dim=0)) == 1797

    def test_without_scikit_learn_the_extra_is_named(self, monkeypatch):
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        refused(ImageConfig(), r"pip install 'mixtura\[vision\]'")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "data.batch_size: expected at least 1, got 0"),
        ({"crop": -1}, "data.crop: expected 0 or more, got -1"),
        ({"val_fraction": 0.6}, "data.val_fraction: expected more than 0 and at most 0.5, got 0.6"),
        ({"image_size": -3}, "data.image_size: expected 0 or more, got -3"),
    ],
)
def test_values_out_of_range(options, message):
    with pytest.raises(UserError, match=message):
        ImageConfig(**options)
