"""Sets of images with boxes: parts, streams, mirrors, counts."""

import torch

from mixtura.models.objects import Objects
from mixtura.train.data.boxed import BoxedBatch, BoxedImages, BoxedSet, BoxedStream, in_order, join, mirrored


def some_set(counts=(2, 0, 3, 1), *, crowd=(3,)) -> BoxedSet:
    """Images of one grey value each; object m has its top left corner at (m, m)."""
    number = sum(counts)
    corner = torch.arange(float(number))[:, None].expand(-1, 2)
    image = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    objects = Objects(boxes=torch.cat([corner, corner + 2], 1), labels=torch.arange(number) % 2, image=image)
    pixels = torch.arange(len(counts), dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 8, 8) * 10
    return BoxedSet(
        images=pixels.contiguous(), objects=objects, crowd=torch.tensor([m in crowd for m in range(number)])
    )


def some_images(**options) -> BoxedImages:
    return BoxedImages(name="t", classes=("a", "b"), train=some_set(**options), val=some_set((1, 1), crowd=()))


class TestPart:
    def test_objects_come_with_their_images(self):
        part = some_set().part(torch.tensor([2, 1, 0]))
        assert part.images[:, 0, 0, 0].tolist() == [20, 0 + 10, 0]
        assert part.objects.image.tolist() == [0, 0, 0, 2, 2]
        assert part.objects.boxes[:, 0].tolist() == [2, 3, 4, 0, 1]
        assert part.objects.labels.tolist() == [0, 1, 0, 0, 1]
        assert part.crowd.tolist() == [False, True, False, False, False]

    def test_an_image_may_come_twice(self):
        part = some_set().part(torch.tensor([3, 3]))
        assert part.objects.image.tolist() == [0, 1]
        assert part.objects.boxes[:, 0].tolist() == [5, 5]

    def test_crowds_are_not_learned(self):
        learned = some_set().learned()
        assert learned.boxes[:, 0].tolist() == [0, 1, 2, 4, 5]
        assert learned.image.tolist() == [0, 0, 2, 2, 3]

    def test_all_come_in_order(self):
        parts = list(in_order(some_set(), batch_size=3))
        assert [len(part) for part in parts] == [3, 1]
        assert parts[1].objects.boxes[:, 0].tolist() == [5]


class TestStream:
    def test_goes_on_anywhere_and_an_epoch_has_every_image(self):
        stream = BoxedStream(some_images(), batch_size=2, seed=3, flip=True)
        first = [next(stream) for _ in range(2)]
        values = torch.cat([batch.images[:, 0, 0, 0] for batch in first])
        assert sorted(((values + 1) * 127.5).round().tolist()) == [0, 10, 20, 30]
        state, after = stream.state_dict(), next(stream)
        again = BoxedStream(some_images(), batch_size=2, seed=3, flip=True)
        again.load_state_dict(state)
        same = next(again)
        assert torch.equal(same.images, after.images)
        assert torch.equal(same.objects.boxes, after.objects.boxes)

    def test_ranks_share_a_batch(self):
        whole = next(BoxedStream(some_images(), batch_size=4, seed=0))
        halves = [next(BoxedStream(some_images(), batch_size=2, seed=0, rank=rank, world_size=2)) for rank in (0, 1)]
        assert torch.equal(whole.images, torch.cat([half.images for half in halves]))

    def test_mirrored_pixels_stay_in_their_boxes(self):
        pixels = torch.zeros(2, 1, 8, 8)
        pixels[:, :, 2:4, 1:6] = 1
        objects = join([torch.tensor([[1.0, 2.0, 6.0, 4.0]])] * 2, [torch.tensor([0])] * 2)
        turned = mirrored(BoxedBatch(pixels, objects), torch.tensor([True, False]))
        for image, (left, top, right, bottom) in zip(turned.images, turned.objects.boxes.int().tolist(), strict=True):
            assert image.sum() == image[0, top:bottom, left:right].sum() == 10
        assert turned.objects.boxes[1].tolist() == [1, 2, 6, 4]


def test_everything_is_counted():
    lines = some_images().report()
    assert lines[0].split() == ["a", "train", "3", "boxes", "held", "out", "1"]
    assert lines[1].split() == ["b", "train", "2", "boxes", "held", "out", "1"]
    assert lines[2] == "t: 4 images to train on, 2 held out, 8 x 8, grey"
    assert lines[3].endswith("train 1, held out 0")
    assert lines[4].endswith("train 1, held out 0")


def test_any_change_changes_the_fingerprint():
    same, other = some_images().fingerprint, some_images(crowd=()).fingerprint
    assert some_images().fingerprint == same != other
