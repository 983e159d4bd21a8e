"""A user's folder in the format of COCO: what is read, what is counted, and every fault named."""

import json

import pytest
import torch

from mixtura.errors import UserError
from mixtura.train.data.scenes import SceneConfig, read_scenes
from tests.train.data.made import picture

SIZES = ((32, 16), (16, 32), (24, 24), (64, 64))  # of images 0, 1, ...


def annotation(number, image, box, *, category=7, **more):
    return {"id": number, "image_id": image, "category_id": category, "bbox": box, **more}


def write_coco(folder, **changes):
    """Four images; the first has a cat and a dog, the third a dog, the fourth a crowd of cats and a cat."""
    for number, size in enumerate(SIZES):
        picture(folder / "images" / f"{number}.png", size=size, value=50 * (number + 1))
    facts = {
        "images": [{"id": 10 + n, "file_name": f"{n}.png", "width": w, "height": h} for n, (w, h) in enumerate(SIZES)],
        "categories": [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}],
        "annotations": [
            annotation(1, 10, [4, 2, 8, 6]),
            annotation(2, 10, [20, 0, 12, 16], category=3),
            annotation(3, 12, [0.5, 1.5, 23.9, 10], category=3),
            annotation(4, 13, [0, 0, 64, 32], iscrowd=1),
            annotation(5, 13, [10, 40, 20, 20]),
        ],
    }
    (folder / "annotations.json").write_text(json.dumps(facts | changes))
    return folder


def changed(folder, part, place, **fields):
    """The same with some fields of one entry changed; None takes a field away."""
    file = write_coco(folder) / "annotations.json"
    facts = json.loads(file.read_text())
    entry = facts[part][place] | fields
    facts[part][place] = {name: value for name, value in entry.items() if value is not None}
    file.write_text(json.dumps(facts))
    return folder


def config(folder, **options):
    return SceneConfig(path=str(folder), **({"image_size": 32, "val_fraction": 0.25} | options))


def refused(folder, told):
    with pytest.raises(UserError, match=told) as caught:
        read_scenes(config(folder))
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def by_brightness(images):
    """Boxes, labels and crowds of each image, whichever part it is in."""
    found = {}
    for part in (images.train, images.val):
        for place in range(len(part)):
            here = part.objects.image == place
            found[int(part.images[place].max()) // 50 - 1] = (
                part.objects.boxes[here].tolist(),
                part.objects.labels[here].tolist(),
                part.crowd[here].tolist(),
            )
    return found


class TestRead:
    def test_images_are_scaled_to_fit_and_boxes_follow(self, tmp_path):
        images = read_scenes(config(write_coco(tmp_path / "pets")))
        assert (images.name, images.classes) == ("pets", ("cat", "dog"))
        assert (len(images.train), len(images.val), images.image_size) == (3, 1, 32)
        found = by_brightness(images)
        assert found[0] == ([[4, 2, 12, 8], [20, 0, 32, 16]], [0, 1], [False, False])
        assert found[1] == ([], [], [])
        share = 32 / 24
        assert found[2][0][0] == pytest.approx([0.5 * share, 1.5 * share, 24 * share, 11.5 * share])
        assert found[3] == ([[0, 0, 32, 16], [5, 20, 15, 30]], [0, 0], [True, False])

    def test_what_does_not_fill_the_square_is_black(self, tmp_path):
        images = read_scenes(config(write_coco(tmp_path / "pets")))
        flat = torch.cat([images.train.images, images.val.images])
        wide = flat[flat.amax((1, 2, 3)) == 50][0, 0]
        assert (wide[:16] == 50).all()
        assert (wide[16:] == 0).all()

    def test_everything_is_counted(self, tmp_path):
        folder = write_coco(tmp_path / "pets")
        (folder / "images" / "more.txt").write_text("")
        lines = "\n".join(read_scenes(config(folder)).report())
        assert "images without boxes, kept as background: train" in lines
        assert "1 boxes cut off at the border, less than 1 pixel beyond it" in lines
        assert "1 files in images/ that are not listed" in lines
        small = changed(tmp_path / "small", "annotations", 0, bbox=[4, 2, 4, 3])
        lines = "\n".join(read_scenes(config(small, image_size=8)).report())
        assert "1 boxes of less than 2 pixels at --data.image-size 8" in lines

    def test_colours_are_kept_if_wanted(self, tmp_path):
        images = read_scenes(config(write_coco(tmp_path / "pets"), colour=True))
        assert images.channels == 3

    def test_two_parts_of_their_own(self, tmp_path):
        for name in ("train", "val"):
            write_coco(tmp_path / "pets" / name)
        images = read_scenes(config(tmp_path / "pets"))
        assert (len(images.train), len(images.val)) == (4, 4)

    def test_two_parts_with_other_categories(self, tmp_path):
        write_coco(tmp_path / "pets" / "train")
        write_coco(tmp_path / "pets" / "test", categories=[{"id": 3, "name": "dog"}, {"id": 7, "name": "cow"}])
        refused(tmp_path / "pets", "expected the same categories in both parts, got cat, dog and dog, cow")


FAULTS = [
    ("annotations", 0, {"bbox": [30, 2, 8, 6]}, r"annotation 1: expected a box inside its image of 32 x 16 pixels"),
    ("annotations", 0, {"bbox": [-2, 2, 8, 6]}, r"annotation 1: expected a box inside .* got x -2 to 6, y 2 to 8"),
    ("annotations", 1, {"bbox": [4, 2, 0, 6]}, "annotation 2: expected a box with width and height above 0, got 0 x 6"),
    ("annotations", 1, {"bbox": [4, 2, 3, -6]}, "annotation 2: expected a box with width and height above 0, got 3 x"),
    ("annotations", 1, {"bbox": [4, 2, 3]}, r"annotation 2: expected bbox \[x, y, width, height\], got \[4, 2, 3\]"),
    ("annotations", 1, {"bbox": [4, 2, 3, "a"]}, r"annotation 2: expected bbox \[x, y, width, height\]"),
    ("annotations", 1, {"bbox": [4, float("nan"), 3, 3]}, r"annotation 2: expected bbox \[x, y, width, height\]"),
    ("annotations", 1, {"bbox": None}, r"annotation 2: expected bbox .* got None"),
    ("annotations", 2, {"category_id": 9}, "annotation 3: expected a category among 7, 3, got 9"),
    ("annotations", 2, {"image_id": 99}, "annotation 3: expected the id of a listed image, got 99"),
    ("annotations", 2, {"image_id": None}, "annotation 3: expected 'image_id', got"),
    ("annotations", 2, {"id": 1}, "annotation 1: expected every annotation once, got its id twice"),
    ("annotations", 2, {"id": None}, "an annotation: expected 'id', got"),
    ("images", 1, {"id": 10}, "image 10: expected every image once, got '1.png' or its id twice"),
    ("images", 1, {"file_name": "0.png"}, "image 11: expected every image once, got '0.png' or its id twice"),
    ("images", 1, {"file_name": "no.png"}, "image 11: expected the file .*no.png, found none"),
    ("images", 1, {"file_name": None}, "an image: expected 'file_name', got"),
    ("images", 1, {"width": 99}, "image 11: expected the size of .*1.png, 16 x 32, got 99 x 32; boxes would lie"),
    ("categories", 1, {"name": "cat"}, "category 3: expected every category once, got 'cat' or its id twice"),
    ("categories", 1, {"name": "mean"}, "expected categories of any name but 'mean'"),
]


class TestFaults:
    @pytest.mark.parametrize(("part", "place", "fields", "told"), FAULTS, ids=[told[:40] for *_, told in FAULTS])
    def test_one_entry(self, tmp_path, part, place, fields, told):
        refused(changed(tmp_path / "pets", part, place, **fields), told)

    @pytest.mark.parametrize(
        ("text", "told"),
        [
            ("{", "expected JSON in the format of COCO, got what cannot be read"),
            ("[]", "expected the lists images, annotations, categories, got no images, annotations, categories"),
            ('{"images": [], "annotations": 3, "categories": []}', "got no annotations"),
            ('{"images": [], "annotations": [], "categories": []}', "expected categories and images, got 0 and 0"),
            ('{"images": [3], "annotations": [], "categories": []}', "an image: expected 'id', got 3"),
        ],
    )
    def test_the_whole_file(self, tmp_path, text, told):
        folder = write_coco(tmp_path / "pets")
        (folder / "annotations.json").write_text(text)
        refused(folder, told)

    def test_no_annotations_at_all(self, tmp_path):
        picture(tmp_path / "pets" / "images" / "0.png")
        refused(tmp_path / "pets", "annotations.json: expected this file beside images/, found none")

    def test_an_image_that_cannot_be_read(self, tmp_path):
        folder = write_coco(tmp_path / "pets")
        (folder / "images" / "2.png").write_bytes(b"no image")
        refused(folder, "2.png: expected an image, got what cannot be read")
        (folder / "images" / "2.png").write_bytes(b"")
        refused(folder, "2.png: expected an image, got an empty file")

    def test_one_image_cannot_be_divided(self, tmp_path):
        folder = write_coco(tmp_path / "pets", annotations=[])
        facts = json.loads((folder / "annotations.json").read_text())
        (folder / "annotations.json").write_text(json.dumps(facts | {"images": facts["images"][:1]}))
        refused(folder, "expected at least 2 images, one of them to hold out, got 1")

    def test_images_without_any_boxes(self, tmp_path):
        folder = write_coco(tmp_path / "pets", annotations=[])
        with pytest.raises(UserError, match="pets: expected boxes to train on, got none in 3 images; annotate some"):
            read_scenes(config(folder))
