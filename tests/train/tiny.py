"""A run that takes a second: its text, its command line, and what it leaves."""

import json
import random
from pathlib import Path

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "def", "if", "else", "return"]
TIMES = {"seconds", "items_per_s"}  # all that may differ between two runs of one configuration
OPTIONS = {
    "data.vocab-size": 257,
    "data.seq-len": 16,
    "data.batch-size": 4,
    "data.val-tokens": 64,
    "data.val-fraction": 0.2,
    "model.dim": 16,
    "model.hidden": 16,
    "model.heads": 2,
    "model.layers": 1,
    "model.num-experts": 4,
    "model.moe-every": 1,
    "optim.warmup": 4,
    "steps": 12,
    "eval-interval": 5,
    "checkpoint-interval": 4,
    "device": "cpu",
    "threads": 1,
    "prompts": "the",
    "name": "tiny",
}


def write_corpus(folder: Path, *, verses: int = 60) -> Path:
    """Text of about 50 bytes a verse, always the same."""
    draw = random.Random(0)
    file = folder / "poem.txt"
    file.write_text("\n\n".join(f"verse {i} " + " ".join(draw.choices(WORDS, k=10)) for i in range(verses)))
    return file


def command(folder: Path, **options: object) -> list[str]:
    """`train` with a tiny configuration; double underscores stand for dots, and None leaves an option out."""
    where = {"data.path": write_corpus(folder), "data.cache": folder / "cache", "out": folder / "runs"}
    given = {name.replace("__", ".").replace("_", "-"): value for name, value in options.items()}
    arguments = ["train", "lm-tiny"]
    for name, value in ({**where, **OPTIONS} | given).items():
        values = value if isinstance(value, tuple) else (value,)
        arguments += [] if value is None else [f"--{name}", *map(str, values)]
    return arguments


def rows(run: Path) -> list[dict[str, object]]:
    """The run's metrics without its times."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{name: value for name, value in row.items() if name not in TIMES} for row in lines]


def checkpoints(run: Path) -> list[str]:
    """All that lies beside and in the folder of checkpoints, hidden leftovers included."""
    return sorted(path.name for path in (run / "checkpoints").iterdir())
