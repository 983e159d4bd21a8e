"""Look at a finished or running run: losses of a checkpoint, text, translations, objects in images, the report."""

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mixtura.errors import UserError
from mixtura.models.gpt import GPT
from mixtura.models.translator import Translator
from mixtura.train.checkpoint import find_checkpoint, load_weights
from mixtura.train.config import TrainConfig
from mixtura.train.data.image_stream import scaled
from mixtura.train.data.pairs import Codec
from mixtura.train.data.tokenizer import TextTokenizer
from mixtura.train.device import choose_device
from mixtura.train.observations import finish
from mixtura.train.run import Run, open_run
from mixtura.train.setup import build_model, require
from mixtura.train.step import evaluate
from mixtura.train.tasks.language import LanguageConfig, language_config
from mixtura.train.tasks.task import Evaluation, Said, Units, device_of
from mixtura.train.tasks.texts import continuation
from mixtura.train.tasks.translation import ADDED, TranslationConfig


def load_model(run: Run, *, checkpoint: str) -> tuple[nn.Module, TrainConfig]:
    """A run's model with the weights of a checkpoint, in evaluation mode on the run's device.

    Raises:
        UserError: no such run or checkpoint, or an unreadable one.
    """
    require("safetensors")
    config = run.read_config()
    folder = find_checkpoint(run, checkpoint)
    model = build_model(config).to(choose_device(config.device, threads=config.threads)).eval()
    load_weights(model, folder)
    return model, config


def load_language_model(run: Run, *, checkpoint: str) -> tuple[GPT, LanguageConfig]:
    """As `load_model`, of a run that must be one of a language model."""
    config = language_config(run.read_config(), run=str(run.folder))
    model, _ = load_model(run, checkpoint=checkpoint)
    assert isinstance(model, GPT)
    return model, config


def evaluate_run(path: str | Path, *, checkpoint: str = "best") -> tuple[Evaluation, Units]:
    """What a checkpoint reaches on held-out data, see `mixtura.train.step.evaluate`, and the unit of its losses."""
    run = open_run(path)
    model, config = load_model(run, checkpoint=checkpoint)
    return evaluate(model, config.prepare()), config.units


def predict_run(path: str | Path, data: str, *, checkpoint: str = "best") -> Said:
    """What a checkpoint says of data without labels; see `TrainConfig.predict`."""
    run = open_run(path)
    model, config = load_model(run, checkpoint=checkpoint)
    return config.predict(model, data, folder=run.folder)


def rewrite_report(path: str | Path, *, checkpoint: str = "best") -> Path:
    """Look at a checkpoint's model again and write the report; returns its path."""
    require("jinja2", "plotly")
    run = open_run(path)
    model, config = load_model(run, checkpoint=checkpoint)
    return finish(run, model, config.prepare())


def generate_text(
    run: str | Path,
    *,
    prompt: str,
    checkpoint: str = "best",
    max_tokens: int = 400,
    temperature: float = 0.8,
    top_k: int = 0,
    seed: int = 0,
) -> Iterator[str]:
    """The prompt, then its continuation piece by piece as it is drawn.

    Raises:
        UserError: no such run or checkpoint, or a value out of its range.
    """
    if max_tokens < 1 or top_k < 0:
        raise UserError(f"expected max_tokens of at least 1 and top_k of at least 0, got {max_tokens} and {top_k}")
    if not (temperature >= 0 and math.isfinite(temperature)):
        raise UserError(f"expected a temperature of at least 0, got {temperature}")
    if not 0 <= seed < 1 << 32:
        raise UserError(f"expected a seed from 0 to 2^32 - 1, got {seed}")
    opened = open_run(run)
    model, _ = load_language_model(opened, checkpoint=checkpoint)
    tokenizer = TextTokenizer.load(opened.tokenizer)
    written = continuation(
        model, tokenizer, prompt, seed=seed, max_tokens=max_tokens, temperature=temperature, top_k=top_k
    )
    yield prompt
    yield from written


@torch.no_grad()
def detect_objects(
    path: str | Path, images: Sequence[str | Path], *, checkpoint: str = "best", least_score: float = 0.3
) -> Iterator[dict[str, Any]]:
    """What a run's detector finds in image files, one after the other.

    Args:
        path: the run's folder.
        images: files, of any size.
        checkpoint: best, last, or a step.
        least_score: what has a lower one is left out.

    Returns:
        for each file "file" and "found": "category", "score" and "bbox", [x, y, width, height] in its pixels.

    Raises:
        UserError: a run of another kind, a file that is missing or no image.
    """
    from mixtura.train.data import pictures  # late: Pillow is optional
    from mixtura.train.tasks.detection import DetectionConfig

    run = open_run(path)
    model, config = load_model(run, checkpoint=checkpoint)
    if not isinstance(config, DetectionConfig):
        raise UserError(f"expected the run of a detector, got {str(run.folder)!r} of {config.task}")
    if not 0 <= least_score <= 1:
        raise UserError(f"expected a least score from 0 to 1, got {least_score}")
    classes = (run.folder / "classes.txt").read_text(encoding="utf-8").splitlines()
    side = config.data.image_size
    for file in map(Path, images):
        if not file.is_file():
            raise UserError(f"{file}: expected an image, found no file")
        pixels, whole = pictures.read_whole(file, size=side, colour=config.model.channels == 3)
        (found,) = config.detect(model(scaled(pixels)[None].to(device_of(model))), size=side)
        corners = found.boxes * (max(whole) / side)
        boxes = torch.cat([corners[:, :2], corners[:, 2:] - corners[:, :2]], dim=1)
        rows = zip(found.labels.tolist(), found.scores.tolist(), boxes.tolist(), strict=True)
        objects = [
            {"category": classes[label], "score": round(score, 4), "bbox": [round(value, 1) for value in box]}
            for label, score, box in rows
            if score >= least_score
        ]
        yield {"file": str(file), "found": objects}


def translate_lines(
    run: str | Path,
    lines: Iterable[str],
    *,
    to: str = "",
    checkpoint: str = "best",
    beam: int = 4,
    alpha: float = 0.6,
    batch: int = 32,
) -> Iterator[str]:
    """The translation of each line, so many at a time; that of a blank line is blank.

    Args:
        run: folder of a run of a translator.
        lines: as they come; a line feed behind one is taken off.
        to: the language; empty: the only one that there is.
        checkpoint: best, last, or a step.
        beam: see `beam_search`.
        alpha: see `beam_search`.
        batch: lines at a time.

    Raises:
        UserError: no such run or checkpoint, or not of a translator; no such language; a line that is too long.
    """
    from mixtura.train.tasks.translations import translate  # late: chains of imports stay short

    opened = open_run(run)
    model, codec = _load_translator(opened, checkpoint=checkpoint)
    if not to and len(codec.languages) > 1:
        raise UserError(f"expected --to with a language among {', '.join(codec.languages)}, got none")
    to = to or codec.languages[0]
    codec.language_id(to)
    texts, done = iter(lines), 0
    while part := [line.strip() for line in islice(texts, batch)]:
        most = model.config.context - ADDED
        sources = [_source(codec, line, to=to, number=n, most=most) for n, line in enumerate(part, done + 1) if line]
        found = iter(translate(model, codec, sources, beam=beam, alpha=alpha))
        yield from (next(found) if line else "" for line in part)
        done += len(part)


def _source(codec: Codec, line: str, *, to: str, number: int, most: int) -> list[int]:
    try:
        ids = codec.source(line, to=to)
    except UserError as error:
        raise UserError(f"line {number}: {error}") from error
    if len(ids) - ADDED > most:
        raise UserError(f"line {number}: expected at most {most} tokens, got {len(ids) - ADDED}; cut it")
    return ids


def _load_translator(run: Run, *, checkpoint: str) -> tuple[Translator, Codec]:
    if (kind := run.read_config().task) != TranslationConfig.task:
        raise UserError(f"expected a run of a translator, got {str(run.folder)!r}, whose task is {kind}")
    model, _ = load_model(run, checkpoint=checkpoint)
    assert isinstance(model, Translator)
    path = run.folder / "languages.txt"
    try:
        languages = tuple(path.read_text(encoding="utf-8").split())
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}; restore it, or train anew") from error
    return model, Codec(tokenizer=TextTokenizer.load(run.tokenizer), languages=languages)
