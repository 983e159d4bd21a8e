"""Images from every source: the digits, MNIST's format, a user's folder; splits, counts, and all that can be wrong."""

import gzip
import struct
import sys

import pytest
import torch

from mixtura.errors import UserError
from mixtura.train.data import mnist
from mixtura.train.data.images import ImageConfig, read_images


def write_idx(folder, part, images, labels, *, ending=".gz"):
    """The two files of a part."""
    for name, values in (("images-idx3-ubyte", images), ("labels-idx1-ubyte", labels)):
        data = bytes((0, 0, 8, values.dim())) + struct.pack(f">{values.dim()}I", *values.shape)
        data += bytes(values.to(torch.uint8).flatten().tolist())
        (folder / f"{part}-{name}{ending}").write_bytes(gzip.compress(data) if ending else data)


def write_mnist(folder, *, ending=".gz"):
    """Six images to train on and two held out, of two classes."""
    folder.mkdir(exist_ok=True)
    for part, count in (("train", 6), ("t10k", 2)):
        write_idx(folder, part, torch.arange(count * 9).view(count, 3, 3), torch.arange(count) % 2, ending=ending)
    return folder


def picture(path, *, size=(4, 4), value=100, mode="L"):
    """One image of a single colour."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value).save(path)


def write_folder(folder, *, classes=("cat", "dog"), count=5, **options):
    """A folder of classes; image n of class c has the grey value 10 * c + n."""
    for c, name in enumerate(classes):
        for n in range(count):
            picture(folder / name / f"{n}.png", value=10 * c + n, **options)
    return folder


def refused(config, message):
    with pytest.raises(UserError, match=message) as caught:
        read_images(config)
    assert "\n" not in str(caught.value)


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


class TestMnist:
    @pytest.mark.parametrize("ending", [".gz", ""])
    def test_files_are_read_as_they_are(self, tmp_path, ending):
        images = read_images(ImageConfig(path=str(write_mnist(tmp_path / "m", ending=ending))))
        assert (images.classes, images.image_size, images.channels) == (("0", "1"), 3, 1)
        assert images.train.images.flatten().tolist() == list(range(54))
        assert images.val.labels.tolist() == [0, 1]
        assert images.report()[-1] == "m: 6 images to train on, 2 held out, 3 x 3, grey"
        assert images.report()[0].split() == ["0", "train", "3", "held", "out", "1"]

    def test_fashion_has_names(self, tmp_path, monkeypatch):
        monkeypatch.setattr(mnist, "FASHION_FOLDER", write_mnist(tmp_path / "fashion-mnist"))
        with pytest.raises(UserError, match="got none of 'pullover'"):
            read_images(ImageConfig(path="fashion-mnist"))

    def test_a_missing_package_gives_the_install_line(self, tmp_path, monkeypatch):
        monkeypatch.setattr(mnist, "FASHION_FOLDER", tmp_path / "none")
        refused(ImageConfig(path="fashion-mnist"), "run: sudo apt-get install dataset-fashion-mnist .*dpkg -x")

    def test_a_missing_file_is_named(self, tmp_path):
        folder = write_mnist(tmp_path / "m")
        (folder / "t10k-labels-idx1-ubyte.gz").unlink()
        refused(ImageConfig(path=str(folder)), "m: expected the file t10k-labels-idx1-ubyte.gz or t10k-labels")

    @pytest.mark.parametrize(
        ("name", "data", "message"),
        [
            ("train-images-idx3-ubyte.gz", b"no gzip", "train-images-idx3-ubyte.gz: cannot be read: Not a gzipped"),
            ("train-images-idx3-ubyte.gz", b"", "train-images-idx3-ubyte.gz: expected 3-dimensional bytes"),
            ("train-images-idx3-ubyte.gz", gzip.compress(b"x" * 99), "expected 3-dimensional bytes in the format"),
            (
                "train-images-idx3-ubyte.gz",
                gzip.compress(bytes((0, 0, 8, 3)) + struct.pack(">3I", 6, 3, 3) + b"1234"),
                "expected 54 values, as its head says, got 4",
            ),
            (
                "train-images-idx3-ubyte.gz",
                gzip.compress(bytes((0, 0, 8, 3)) + struct.pack(">3I", 6, 3, 2) + bytes(36)),
                "expected square images, got 3 x 2 pixels",
            ),
            (
                "train-labels-idx1-ubyte.gz",
                gzip.compress(bytes((0, 0, 8, 1)) + struct.pack(">I", 5) + bytes(5)),
                "train-labels-idx1-ubyte.gz: expected 6 labels, one per image, got 5",
            ),
        ],
    )
    def test_damaged_files_are_named(self, tmp_path, name, data, message):
        folder = write_mnist(tmp_path / "m")
        (folder / name).write_bytes(data)
        refused(ImageConfig(path=str(folder)), message)


class TestFolder:
    def test_folders_are_classes_and_other_files_are_counted(self, tmp_path):
        folder = write_folder(tmp_path / "pets")
        (folder / "cat" / "notes.txt").write_text("no image")
        images = read_images(ImageConfig(path=str(folder), val_fraction=0.4))
        assert images.classes == ("cat", "dog")
        assert (len(images.train), len(images.val)) == (6, 4)
        for part in (images.train, images.val):
            assert torch.equal(part.images[:, 0, 0, 0] // 10, part.labels.to(torch.uint8))
        assert images.report()[-1].endswith("4 x 4, grey; left out: 1 files of other kinds")

    def test_train_and_test_folders_are_the_parts(self, tmp_path):
        write_folder(tmp_path / "train", count=3)
        write_folder(tmp_path / "test", count=2)
        images = read_images(ImageConfig(path=str(tmp_path)))
        assert (len(images.train), len(images.val)) == (6, 4)

    def test_parts_with_other_classes_are_refused(self, tmp_path):
        write_folder(tmp_path / "train")
        write_folder(tmp_path / "val", classes=("cat", "cow"))
        refused(ImageConfig(path=str(tmp_path)), "val: expected the classes of .*train: cat, dog; got others")

    def test_scaling_and_colours(self, tmp_path):
        folder = write_folder(tmp_path / "pets", size=(9, 5))
        images = read_images(ImageConfig(path=str(folder), image_size=6, colour=True))
        assert images.train.images.shape[1:] == (3, 6, 6)

    def test_an_empty_file_is_named(self, tmp_path):
        folder = write_folder(tmp_path / "pets")
        (folder / "dog" / "9.png").write_bytes(b"")
        refused(ImageConfig(path=str(folder)), r"dog.9.png: expected an image, got an empty file")

    @pytest.mark.parametrize("data", [b"no image", b"\x89PNG\r\n\x1a\n" + b"\0" * 30])
    def test_an_unreadable_file_is_named(self, tmp_path, data):
        folder = write_folder(tmp_path / "pets")
        (folder / "dog" / "9.png").write_bytes(data)
        refused(ImageConfig(path=str(folder)), r"dog.9.png: expected an image, got what cannot be read")

    def test_a_truncated_file_is_named(self, tmp_path):
        folder = write_folder(tmp_path / "pets", size=(64, 64))
        whole = (folder / "dog" / "1.png").read_bytes()
        (folder / "dog" / "1.png").write_bytes(whole[: len(whole) // 2])
        refused(ImageConfig(path=str(folder)), r"dog.1.png: expected an image, got what cannot be read")

    def test_another_size_is_named_with_the_option_that_helps(self, tmp_path):
        folder = write_folder(tmp_path / "pets")
        picture(folder / "dog" / "9.png", size=(5, 4))
        refused(
            ImageConfig(path=str(folder)),
            r"dog.9.png: expected 4 x 4 pixels like the images before it, got 5 x 4; --data.image-size 4 scales all",
        )

    def test_images_that_are_not_square_are_refused(self, tmp_path):
        folder = write_folder(tmp_path / "pets", size=(4, 6))
        refused(ImageConfig(path=str(folder)), "expected a square image, got 4 x 6")

    def test_a_class_without_images_is_named(self, tmp_path):
        folder = write_folder(tmp_path / "pets")
        (folder / "emu").mkdir()
        refused(ImageConfig(path=str(folder)), r"emu: expected images .* got none among 0 files")

    def test_one_class_is_refused(self, tmp_path):
        folder = write_folder(tmp_path / "pets", classes=("a",))
        refused(ImageConfig(path=str(folder)), "expected at least 2 classes, got only 'a'")

    def test_a_class_too_small_to_hold_out_is_refused(self, tmp_path):
        folder = write_folder(tmp_path / "pets")
        picture(folder / "emu" / "0.png")
        refused(ImageConfig(path=str(folder)), "expected images to train on of every class, got none of 'emu'")

    def test_almost_one_class_is_warned_of(self, tmp_path):
        folder = write_folder(tmp_path / "pets", classes=("cat",), count=30)
        write_folder(folder, classes=("dog",), count=2)
        with pytest.warns(UserWarning, match="got 96% of the images in 'cat'"):
            read_images(ImageConfig(path=str(folder)))

    def test_no_folder_and_no_classes(self, tmp_path):
        refused(ImageConfig(path=str(tmp_path / "none")), "none: expected a folder of images or 'fashion-mnist'")
        refused(ImageConfig(path=str(tmp_path)), "expected a folder of images for each class, found no folders")

    def test_without_pillow_the_extra_is_named(self, tmp_path, monkeypatch):
        folder = write_folder(tmp_path / "pets")
        monkeypatch.delitem(sys.modules, "mixtura.train.data.pictures", raising=False)
        monkeypatch.delattr("mixtura.train.data.pictures", raising=False)
        monkeypatch.setitem(sys.modules, "PIL", None)
        refused(ImageConfig(path=str(folder)), r"needs Pillow; run: pip install 'mixtura\[vision\]'")


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
