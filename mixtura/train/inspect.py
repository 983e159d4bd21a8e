"""Look at a finished or running run: losses of a checkpoint, generated text, objects in images, the report."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mixtura.errors import UserError
from mixtura.models.gpt import GPT
from mixtura.train.checkpoint import find_checkpoint, load_weights
from mixtura.train.config import TrainConfig
from mixtura.train.data.image_stream import scaled
from mixtura.train.data.tokenizer import TextTokenizer
from mixtura.train.device import choose_device
from mixtura.train.observations import finish
from mixtura.train.run import Run, open_run
from mixtura.train.setup import build_model, require
from mixtura.train.step import evaluate
from mixtura.train.tasks.language import LanguageConfig, language_config
from mixtura.train.tasks.task import Evaluation, Said, Units, device_of
from mixtura.train.tasks.texts import continuation


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
