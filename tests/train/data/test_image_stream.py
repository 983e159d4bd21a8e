"""Batches of images: each once an epoch, the same after going on, changed within bounds and by seed alone."""

import pytest
import torch

from mixtura.errors import UserError
from mixtura.train.data.image_stream import ImageStream, augment, in_order, scaled
from mixtura.train.data.images import Images, ImageSet


def numbered(count: int = 10, size: int = 4) -> Images:
    """Image n holds n everywhere and has label n % 2."""
    pixels = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(count, 1, size, size).contiguous()
    part = ImageSet(pixels, torch.arange(count) % 2)
    return Images(name="numbers", classes=("even", "odd"), train=part, val=part)


def stream_of(images=None, **options):
    return ImageStream(images or numbered(), **{"batch_size": 5, "seed": 0, **options})


def numbers(batch):
    return ((batch.images[:, 0, 0, 0] + 1) * 127.5).round().int().tolist()


def test_an_epoch_holds_every_image_once_with_its_label():
    stream = stream_of()
    epochs = []
    for _ in range(2):
        batches = [next(stream), next(stream)]
        seen = [n for batch in batches for n in numbers(batch)]
        assert sorted(seen) == list(range(10))
        assert [n % 2 for n in seen] == [label for batch in batches for label in batch.labels_B.tolist()]
        epochs.append(seen)
    assert epochs[0] != epochs[1]


def test_a_stream_goes_on_where_it_stopped_changes_included():
    first = stream_of(crop=1, flip=True, batch_size=3)
    for _ in range(4):
        next(first)
    second = stream_of(crop=1, flip=True, batch_size=3)
    second.load_state_dict(first.state_dict())
    for _ in range(5):
        a, b = next(first), next(second)
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.labels_B, b.labels_B)


def test_ranks_share_a_batch():
    whole = stream_of(batch_size=4)
    parts = [stream_of(batch_size=2, rank=rank, world_size=2) for rank in range(2)]
    for _ in range(4):
        assert numbers(next(whole)) == [n for part in parts for n in numbers(next(part))]


def test_the_state_of_other_images_is_refused():
    state = stream_of(numbered(12)).state_dict()
    with pytest.raises(UserError, match="expected the data of the saved run"):
        stream_of().load_state_dict(state)


def test_moved_images_are_windows_of_the_padded_ones():
    images = torch.randint(1, 255, (40, 2, 5, 5), dtype=torch.uint8)
    changed = augment(images, crop=2, flip=False, generator=torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2))
    places = set()
    for before, after in zip(padded, changed, strict=True):
        windows = {(y, x): before[:, y : y + 5, x : x + 5] for y in range(5) for x in range(5)}
        found = [place for place, window in windows.items() if torch.equal(window, after)]
        assert len(found) == 1
        places.add(found[0])
    assert len(places) > 10


def test_half_of_the_images_are_mirrored():
    images = torch.arange(4, dtype=torch.uint8).view(1, 1, 1, 4).expand(400, 1, 2, 4)
    changed = augment(images, crop=0, flip=True, generator=torch.Generator().manual_seed(0))
    is_mirrored = (changed == images.flip(-1)).flatten(1).all(1)
    assert torch.equal(changed[~is_mirrored], images[~is_mirrored])
    assert 160 < is_mirrored.sum() < 240


def test_held_out_images_come_in_order_and_unchanged():
    batches = list(in_order(numbered().val, batch_size=4))
    assert [n for batch in batches for n in numbers(batch)] == list(range(10))
    assert torch.equal(scaled(torch.tensor([0, 51, 255], dtype=torch.uint8)), torch.tensor([-1.0, -0.6, 1.0]))
