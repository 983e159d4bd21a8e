"""A user's images with boxes in the format of COCO (Lin et al. 2014): every fault named by file, image, annotation."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mixtura.errors import UserError
from mixtura.train.data import pictures
from mixtura.train.data.boxed import BoxedImages, BoxedSet, join

if TYPE_CHECKING:
    from mixtura.train.data.scenes import SceneConfig

ANNOTATIONS = "annotations.json"
_BEYOND = 1.0  # pixels that a box may reach beyond its image, as rounding makes it; it is cut off there
_TINY = 2.0  # pixels
Entry = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class _Listed:
    """What one annotations.json says, checked; places of categories by their ids, annotations by their image's id."""

    file: Path
    classes: tuple[str, ...]
    label: dict[Any, int]
    images: dict[Any, Entry]
    annotations: dict[Any, list[Entry]]


def read(folder: Path, config: SceneConfig) -> BoxedImages:
    """Read a folder with images/ and annotations.json, or one with train/ and val/ that hold those each.

    Raises:
        UserError: a file that is missing or cannot be read, a box outside of its image or without area, an unknown
            category or image, an image listed twice: named by file and id.
    """
    listed = [_listed(part / ANNOTATIONS) for part in pictures.parts_of(folder)]
    classes = listed[0].classes
    if any(part.classes != classes for part in listed):
        names = [", ".join(part.classes) for part in listed]
        raise UserError(f"{folder}: expected the same categories in both parts, got {names[0]} and {names[1]}")
    if "mean" in classes:
        raise UserError(f"{folder}: expected categories of any name but 'mean', which is the mean over all; rename it")
    parts, notes = zip(*(_read(part, config) for part in listed), strict=True)
    train, val = parts if len(parts) == 2 else _split(parts[0], config, folder=folder)
    return BoxedImages(name=folder.name, classes=classes, train=train, val=val, notes=tuple(sum(notes, ())))


def _split(whole: BoxedSet, config: SceneConfig, *, folder: Path) -> tuple[BoxedSet, BoxedSet]:
    if len(whole) < 2:
        raise UserError(f"{folder}: expected at least 2 images, one of them to hold out, got {len(whole)}")
    places = torch.randperm(len(whole), generator=torch.Generator().manual_seed(config.seed))
    held_out = max(1, math.floor(len(places) * config.val_fraction))
    return whole.part(places[held_out:].sort().values), whole.part(places[:held_out].sort().values)


def _read(listed: _Listed, config: SceneConfig) -> tuple[BoxedSet, tuple[str, ...]]:
    """The images and boxes of one part, scaled, and what there is to say about them."""
    pixels, boxes, labels, crowd, cut = [], [], [], [], 0
    for number, image in listed.images.items():
        path = listed.file.parent / "images" / str(image["file_name"])
        if not path.is_file():
            raise UserError(f"{listed.file}: image {number}: expected the file {path}, found none")
        tensor, size = pictures.read_whole(path, size=config.image_size, colour=config.colour)
        said = tuple(image.get(name, side) for name, side in zip(("width", "height"), size, strict=True))
        if said != size:
            raise UserError(
                f"{listed.file}: image {number}: expected the size of {path}, {size[0]} x {size[1]}, got "
                f"{said[0]} x {said[1]}; boxes would lie elsewhere"
            )
        here = listed.annotations.get(number, [])
        found = [_box(listed.file, annotation, size=size) for annotation in here]
        cut += sum(was_cut for _, was_cut in found)
        pixels.append(tensor)
        boxes.append(torch.tensor([box for box, _ in found]).view(-1, 4) * (config.image_size / max(size)))
        labels.append(torch.tensor([listed.label[annotation["category_id"]] for annotation in here], dtype=torch.long))
        crowd += [bool(annotation.get("iscrowd", 0)) for annotation in here]
    objects = join(boxes, labels)
    part = BoxedSet(images=torch.stack(pixels), objects=objects, crowd=torch.tensor(crowd, dtype=torch.bool))
    tiny = int(((objects.boxes[:, 2:] - objects.boxes[:, :2]).amax(1) < _TINY).sum())
    files = sum(path.is_file() for path in (listed.file.parent / "images").rglob("*")) - len(listed.images)
    counts = {
        f"boxes cut off at the border, less than {_BEYOND:g} pixel beyond it": cut,
        f"boxes of less than {_TINY:g} pixels at --data.image-size {config.image_size}": tiny,
        "files in images/ that are not listed": files,
    }
    return part, tuple(f"{listed.file}: {count:,} {what}" for what, count in counts.items() if count)


def _listed(file: Path) -> _Listed:
    facts = _load(file)
    names: dict[Any, str] = {}
    for entry in facts["categories"]:
        number, name = (_get(file, entry, field, what="a category") for field in ("id", "name"))
        if number in names or name in names.values():
            raise UserError(f"{file}: category {number}: expected every category once, got {name!r} or its id twice")
        names[number] = str(name)
    images, files = {}, set()
    for entry in facts["images"]:
        number, name = (_get(file, entry, field, what="an image") for field in ("id", "file_name"))
        if number in images or name in files:
            raise UserError(f"{file}: image {number}: expected every image once, got {name!r} or its id twice")
        images[number] = entry
        files.add(name)
    if not names or not images:
        raise UserError(f"{file}: expected categories and images, got {len(names)} and {len(images)}")
    annotations = _annotations(file, facts["annotations"], images=images, names=names)
    label = {number: place for place, number in enumerate(names)}
    return _Listed(file=file, classes=tuple(names.values()), label=label, images=images, annotations=annotations)


def _annotations(
    file: Path, entries: list[Entry], *, images: Mapping[Any, Entry], names: Mapping[Any, str]
) -> dict[Any, list[Entry]]:
    """The annotations of each image's id."""
    annotations: dict[Any, list[Entry]] = {}
    seen = set()
    for entry in entries:
        number = _get(file, entry, "id", what="an annotation")
        image, category = (_get(file, entry, name, what=f"annotation {number}") for name in ("image_id", "category_id"))
        if number in seen:
            raise UserError(f"{file}: annotation {number}: expected every annotation once, got its id twice")
        if image not in images:
            raise UserError(f"{file}: annotation {number}: expected the id of a listed image, got {image}")
        if category not in names:
            known = ", ".join(map(str, names))
            raise UserError(f"{file}: annotation {number}: expected a category among {known}, got {category}")
        seen.add(number)
        annotations.setdefault(image, []).append(entry)
    return annotations


def _load(file: Path) -> dict[str, list[Entry]]:
    if not file.is_file():
        raise UserError(f"{file}: expected this file beside images/, found none; it is COCO's instances_*.json")
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # not UTF-8, or not JSON
        raise UserError(f"{file}: expected JSON in the format of COCO, got what cannot be read ({error})") from error
    found = facts if isinstance(facts, dict) else {}
    names = ("images", "annotations", "categories")
    if missing := [name for name in names if not isinstance(found.get(name), list)]:
        raise UserError(f"{file}: expected the lists {', '.join(names)}, got no {', '.join(missing)}")
    return {name: found[name] for name in names}


def _get(file: Path, entry: object, name: str, *, what: str) -> Any:
    """A field that must be there: a number or a text."""
    value = entry.get(name) if isinstance(entry, dict) else None
    if not isinstance(value, int | str):
        raise UserError(f"{file}: {what}: expected {name!r}, got {entry!r:.80}")
    return value


def _box(file: Path, annotation: Entry, *, size: tuple[int, int]) -> tuple[list[float], bool]:
    """Left, top, right, bottom in the file's pixels, and whether it had to be cut off."""
    box, what = annotation.get("bbox"), f"annotation {annotation['id']}"
    if not (isinstance(box, list) and len(box) == 4 and all(_is_finite(value) for value in box)):
        raise UserError(f"{file}: {what}: expected bbox [x, y, width, height], got {box!r:.60}")
    x, y, width, height = map(float, box)
    if width <= 0 or height <= 0:
        raise UserError(f"{file}: {what}: expected a box with width and height above 0, got {width:g} x {height:g}")
    beyond = max(-x, -y, x + width - size[0], y + height - size[1])
    left, top, right, bottom = max(x, 0), max(y, 0), min(x + width, size[0]), min(y + height, size[1])
    if beyond >= _BEYOND or left >= right or top >= bottom:
        raise UserError(
            f"{file}: {what}: expected a box inside its image of {size[0]} x {size[1]} pixels, got x {x:g} to "
            f"{x + width:g}, y {y:g} to {y + height:g}"
        )
    return [left, top, right, bottom], beyond > 0


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
