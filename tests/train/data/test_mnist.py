"""MNIST's format and Fashion-MNIST's package: read as they are, and every damage told with the file's name."""

import gzip
import struct

import pytest

from mixtura.errors import UserError
from mixtura.train.data import mnist
from mixtura.train.data.images import ImageConfig, read_images
from tests.train.data.made import refused, write_mnist


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
        ids=["no gzip", "empty", "no format", "cut short", "not square", "labels missing"],
    )
    def test_damaged_files_are_named(self, tmp_path, name, data, message):
        folder = write_mnist(tmp_path / "m")
        (folder / name).write_bytes(data)
        refused(ImageConfig(path=str(folder)), message)
