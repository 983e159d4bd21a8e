"""What classifiers of texts and of images say of data without labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mixtura.errors import UserError
from mixtura.train.tasks.task import Said, autocast, device_of

if TYPE_CHECKING:
    from mixtura.train.tasks.classification import ClassificationConfig
    from mixtura.train.tasks.vision import VisionConfig


def texts(model: nn.Module, config: ClassificationConfig, data: str, *, folder: Path) -> Said:
    """Each text's probability of each class: of a long text the mean over its chunks, by their tokens.

    Args:
        model: in evaluation mode.
        config: of its run.
        data: a .csv, .jsonl or .parquet file with the run's text column, a text in each row; or one text.
        folder: of the run.

    Raises:
        UserError: a file that cannot be read, or a text without a token.
    """
    from mixtura.train.data.formats import read_rows
    from mixtura.train.data.tokenizer import TextTokenizer

    path, tokenizer, length = Path(data), TextTokenizer.load(folder / "tokenizer.json"), config.data.seq_len
    rows = list(read_rows(path, text_column=config.data.text_column))
    chunks = []
    for number, row in enumerate(rows):
        ids = tokenizer.encode(row.text)
        if not ids:
            raise UserError(f"{path}, row {row.place or 1}: expected a text, got an empty one; leave it out")
        chunks += [(number, ids[start : start + length]) for start in range(0, len(ids), length)]
    classes = _classes(folder)
    sums_NC, device = torch.zeros(len(rows), len(classes)), device_of(model)
    for part in _parts(chunks, config.data.batch_size):
        width = max(len(ids) for _, ids in part)
        ids_BL = torch.tensor([[*ids, *[tokenizer.end_id] * (width - len(ids))] for _, ids in part])
        length_B = torch.tensor([len(ids) for _, ids in part])
        mask_BL = torch.arange(width) < length_B[:, None]
        with torch.no_grad(), autocast(config, device):
            logits = model(ids_BL.to(device), mask_BL=mask_BL.to(device)).float().cpu()
        row_B = torch.tensor([number for number, _ in part])
        sums_NC.index_add_(0, row_B, logits.softmax(-1) * length_B[:, None])
    return _said([row.place or path.name for row in rows], sums_NC / sums_NC.sum(1, keepdim=True), classes)


def images(model: nn.Module, config: VisionConfig, data: str, *, folder: Path) -> Said:
    """Each image's probability of each class; images are scaled to the size that the model knows.

    Args:
        model: in evaluation mode.
        config: of its run.
        data: a folder of image files, and of folders with such files.
        folder: of the run.

    Raises:
        UserError: no such folder, no image in it, or one that cannot be read.
    """
    from mixtura.train.data.image_stream import scaled
    from mixtura.train.data.pictures import read_all

    path = Path(data).expanduser()
    if not path.is_dir():
        raise UserError(f"{path}: expected a folder of images, found none; check --data")
    skipped: Counter[str] = Counter()
    files, pixels = read_all(path, skipped, size=config.model.image_size, colour=config.model.channels == 3)
    device, said = device_of(model), []
    for part in pixels.split(config.data.batch_size):
        with torch.no_grad(), autocast(config, device):
            said.append(model(scaled(part).to(device)).float().cpu().softmax(-1))
    notes = [f"left out: {count} {reason}" for reason, count in sorted(skipped.items())]
    return _said([file.relative_to(path).as_posix() for file in files], torch.cat(said), _classes(folder), notes=notes)


def _classes(folder: Path) -> list[str]:
    path = folder / "classes.txt"
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f"expected the names of the classes in {path}, got none ({error}); train anew") from error


def _parts(chunks: Sequence[tuple[int, list[int]]], size: int) -> Iterator[Sequence[tuple[int, list[int]]]]:
    """Those of like length together, so that little is padding."""
    ordered = sorted(chunks, key=lambda chunk: len(chunk[1]))
    return (ordered[start : start + size] for start in range(0, len(ordered), size))


def _said(names: list[str], probability_NC: Tensor, classes: list[str], *, notes: Sequence[str] = ()) -> Said:
    told = dict(zip(classes, probability_NC.unbind(1), strict=True))
    best = [classes[number] for number in probability_NC.argmax(1).tolist()]
    return Said(columns={"": names, "class": best, **{k: v.tolist() for k, v in told.items()}}, notes=notes)
