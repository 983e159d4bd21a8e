"""A user's folder of images: classes, parts, sizes, counts, and every file that cannot be used told by its name."""

import sys

import pytest
import torch

from mixtura.train.data.images import ImageConfig, read_images
from tests.train.data.made import picture, refused, write_folder


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
