"""Images in the format of MNIST (LeCun et al. 1998), plain or compressed, and where Debian keeps Fashion-MNIST."""

import gzip
import struct
import zlib
from pathlib import Path

import torch
from torch import Tensor

from mixtura.errors import UserError

FASHION_FOLDER = Path("/usr/share/datasets/fashion-mnist")
FASHION_CLASSES = (
    "t-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
_UINT8 = 8


def fashion_folder() -> Path:
    """Where the package dataset-fashion-mnist of Debian and Ubuntu lies.

    Raises:
        UserError: it is not installed; says how to install it, or to use it without.
    """
    if not is_here(FASHION_FOLDER):
        raise UserError(
            f"expected Fashion-MNIST in {FASHION_FOLDER}, found none; run: sudo apt-get install dataset-fashion-mnist "
            "(without root: apt-get download dataset-fashion-mnist && dpkg -x dataset-fashion-mnist_*.deb fashion, "
            "then --data.path fashion/usr/share/datasets/fashion-mnist)"
        )
    return FASHION_FOLDER


def is_here(folder: Path) -> bool:
    """Whether a folder holds files of the format.

    Example:
        >>> is_here(Path("no/such/folder"))
        False
    """
    return any(folder.glob("*-idx[13]-ubyte*"))


def read(folder: Path, part: str) -> tuple[Tensor, Tensor]:
    """The images, uint8 (N, 1, H, W), and labels, int64 (N,), of a part: "train" or "t10k".

    Raises:
        UserError: a missing, damaged or foreign file, images that are not square, another number of labels.
    """
    image_file, label_file = (_find(folder, f"{part}-{kind}") for kind in ("images-idx3-ubyte", "labels-idx1-ubyte"))
    images, labels = _read_idx(image_file, dimensions=3), _read_idx(label_file, dimensions=1)
    if len(images) != len(labels):
        raise UserError(f"{label_file}: expected {len(images)} labels, one per image, got {len(labels)}")
    if not len(images):
        raise UserError(f"{image_file}: expected images, got none")
    if images.shape[1] != images.shape[2]:
        raise UserError(f"{image_file}: expected square images, got {images.shape[1]} x {images.shape[2]} pixels")
    return images.unsqueeze(1), labels.long()


def _find(folder: Path, name: str) -> Path:
    for ending in (".gz", ""):
        if (file := folder / (name + ending)).is_file():
            return file
    raise UserError(f"{folder}: expected the file {name}.gz or {name}, found neither")


def _read_idx(file: Path, *, dimensions: int) -> Tensor:
    try:
        data = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{file}: cannot be read: {error}; get it again") from error
    head = 4 + 4 * dimensions
    if len(data) < head or data[:2] != b"\0\0" or data[2:4] != bytes((_UINT8, dimensions)):
        raise UserError(f"{file}: expected {dimensions}-dimensional bytes in the format of MNIST, got something else")
    shape = struct.unpack(f">{dimensions}I", data[4:head])
    values = torch.frombuffer(bytearray(data), dtype=torch.uint8)[head:]
    expected = int(torch.tensor(shape, dtype=torch.float64).prod())
    if len(values) != expected:
        raise UserError(f"{file}: expected {expected} values, as its head says, got {len(values)}; get it again")
    return values.view(shape)
