"""A user's folder of image files; import it late, for Pillow is optional."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mixtura.errors import UserError

try:
    from PIL import Image, UnidentifiedImageError
except ImportError as error:
    raise UserError("reading image files needs Pillow; run: pip install 'mixtura[vision]'") from error

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
_HELD_OUT = ("val", "valid", "validation", "test")


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """What the folders hold, one entry of `images` and `labels` for each of them.

    Example:
        >>> Pictures(images=(), labels=(), classes=("cat", "dog")).skipped
        ()
    """

    images: tuple[Tensor, ...]
    labels: tuple[Tensor, ...]
    classes: tuple[str, ...]
    skipped: tuple[tuple[str, int], ...] = ()


def parts_of(folder: Path) -> tuple[Path, ...]:
    """The folder itself, or the two in it that hold what to train on and what to hold out.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as name:
        ...     for part in ("train", "test"):
        ...         Path(name, part).mkdir()
        ...     [part.name for part in parts_of(Path(name))]
        ['train', 'test']
    """
    names = {sub.name for sub in _folders(folder)}
    held_out = names - {"train"}
    if len(names) == 2 and "train" in names and held_out <= set(_HELD_OUT):
        return folder / "train", folder / held_out.pop()
    return (folder,)


def read(parts: Sequence[Path], *, size: int, colour: bool) -> Pictures:
    """Read the images of folders that hold a folder per class.

    Args:
        parts: the folders; all have the classes of the first.
        size: scale to so many pixels each way; 0: all must have the size of the first one.
        colour: three channels; else one.

    Returns:
        uint8 (N, C, H, H) and int64 (N,) for each folder.

    Raises:
        UserError: no classes, a class without images, a file that cannot be read or has another size.
    """
    classes = tuple(sub.name for sub in _folders(parts[0]))
    if not classes:
        raise UserError(f"{parts[0]}: expected a folder of images for each class, found no folders; check --data.path")
    skipped: Counter[str] = Counter()
    images, labels = [], []
    expected = (size, size) if size else None
    for part in parts:
        if {sub.name for sub in _folders(part)} != set(classes):
            raise UserError(f"{part}: expected the classes of {parts[0]}: {', '.join(classes)}; got others")
        tensors, numbers = [], []
        for number, name in enumerate(classes):
            for file in _files(part / name, skipped):
                pixels = _open(file, size=size, colour=colour)
                expected = _check_size(file, pixels, expected)
                tensors.append(pixels)
                numbers.append(number)
        images.append(torch.stack(tensors))
        labels.append(torch.tensor(numbers))
    return Pictures(images=tuple(images), labels=tuple(labels), classes=classes, skipped=tuple(sorted(skipped.items())))


def read_all(folder: Path, skipped: Counter[str], *, size: int, colour: bool) -> tuple[list[Path], Tensor]:
    """Every image file below a folder, in the order of their names, scaled: paths, and uint8 (N, C, H, H).

    Raises:
        UserError: no image, or one that cannot be read.
    """
    files = _files(folder, skipped)
    return files, torch.stack([_open(file, size=size, colour=colour) for file in files])


def _folders(folder: Path) -> list[Path]:
    return sorted(sub for sub in folder.iterdir() if sub.is_dir() and not sub.name.startswith("."))


def _files(folder: Path, skipped: Counter[str]) -> list[Path]:
    found = [file for file in sorted(folder.rglob("*")) if file.is_file() and not file.name.startswith(".")]
    files = [file for file in found if file.suffix.lower() in ENDINGS]
    if not files:
        raise UserError(f"{folder}: expected images ({' '.join(ENDINGS)}), got none among {len(found)} files")
    if len(files) < len(found):
        skipped["files of other kinds"] += len(found) - len(files)
    return files


def _open(file: Path, *, size: int, colour: bool) -> Tensor:
    image = _converted(file, colour=colour)
    if size and image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    return _pixels(image)


def read_whole(file: Path, *, size: int, colour: bool) -> tuple[Tensor, tuple[int, int]]:
    """An image scaled to fit into a square at its top left, the rest black, and its own width and height.

    Returns:
        uint8 (C, H, H); a place in the file's image times H over its longer side is the place here.

    Raises:
        UserError: a file that cannot be read.
    """
    image = _converted(file, colour=colour)
    whole = image.size
    share = size / max(whole)
    fitting = [max(1, round(side * share)) for side in whole]
    if image.size != (fitting[0], fitting[1]):
        image = image.resize((fitting[0], fitting[1]), Image.Resampling.BILINEAR)
    square = Image.new(image.mode, (size, size))
    square.paste(image, (0, 0))
    return _pixels(square), whole


def _converted(file: Path, *, colour: bool) -> Image.Image:
    if not file.stat().st_size:
        raise UserError(f"{file}: expected an image, got an empty file; remove it or put it right")
    try:
        with Image.open(file) as image:
            return image.convert("RGB" if colour else "L")
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{file}: expected an image, got what cannot be read ({error}); remove it") from error


def _pixels(image: Image.Image) -> Tensor:
    width, height = image.size
    values = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return values.view(height, width, len(image.getbands())).permute(2, 0, 1)


def _check_size(file: Path, pixels: Tensor, expected: tuple[int, int] | None) -> tuple[int, int]:
    height, width = pixels.shape[1:]
    if expected is None and height != width:
        raise UserError(
            f"{file}: expected a square image, got {width} x {height}; "
            f"--data.image-size {min(height, width)} scales all"
        )
    if expected is not None and (height, width) != expected:
        raise UserError(
            f"{file}: expected {expected[1]} x {expected[0]} pixels like the images before it, got {width} x {height}; "
            f"--data.image-size {expected[0]} scales all"
        )
    return height, width
