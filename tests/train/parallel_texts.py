"""A language of numbers in three tongues, small enough to be learned in seconds."""

import random

WORDS = {
    "en": ["one", "two", "three", "four", "five", "six"],
    "es": ["uno", "dos", "tres", "cuatro", "cinco", "seis"],
    "de": ["eins", "zwei", "drei", "vier", "fünf", "sechs"],
}
OPTIONS = {
    "data.vocab-size": 300,
    "data.max-tokens": 24,
    "data.batch-tokens": 256,
    "data.val-fraction": 0.2,
    "data.val-pairs": 20,
    "model.dim": 32,
    "model.hidden": 32,
    "model.heads": 2,
    "model.layers": 1,
    "model.num-experts": 4,
    "model.expert-hidden": 16,
    "model.moe-every": 1,
    "optim.lr": 0.005,
    "optim.warmup": 10,
    "steps": 150,
    "eval-interval": 50,
    "checkpoint-interval": 50,
    "beam": 2,
    "device": "cpu",
    "threads": 1,
    "name": "tiny",
}


def sentences(count, *, seed=0):
    """Numbers of words, no two sentences alike."""
    draw, found = random.Random(seed), {}
    while len(found) < count:
        found[tuple(draw.choices(range(6), k=draw.randint(1, 4)))] = None
    return list(found)


def text(language, numbers):
    return " ".join(WORDS[language][number] for number in numbers)


def write_files(folder, *, languages=("en", "es"), count=240):
    """numbers.en, numbers.es: one sentence a line."""
    paths = [folder / f"numbers.{language}" for language in languages]
    for language, path in zip(languages, paths, strict=True):
        path.write_text("".join(f"{text(language, numbers)}\n" for numbers in sentences(count)), encoding="utf-8")
    return paths


def command(folder, *, paths=(), **options):
    """`train translate-tiny` on files or with other data; double underscores stand for dots."""
    where = {"out": folder / "runs"}
    if paths:
        where |= {"data.source": paths[::2], "data.target": paths[1::2]}
    given = {name.replace("__", ".").replace("_", "-"): value for name, value in options.items()}
    arguments = ["train", "translate-tiny"]
    for name, value in ({**where, **OPTIONS} | given).items():
        arguments += [f"--{name}", *map(str, value if isinstance(value, list | tuple) else (value,))]
    return arguments
