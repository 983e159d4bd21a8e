"""Image files of every format, made for a test, and how a refusal reads."""

import gzip
import struct

import pytest
import torch

from mixtura.errors import UserError
from mixtura.train.data.images import read_images


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
