"""The figures of docs/surgery.md, from the committed results; `benchmarks.readme` puts them there."""

from collections.abc import Callable
from typing import Any

from benchmarks.common import load, measured_on, table

COLUMNS = ("python", "c", "prose", "mean")
ROWS = (
    "dense, as published",
    *(f"branch: {name}" for name in COLUMNS[:3]),
    "branches averaged",
    "branches averaged, trained on",
    "dense, trained",
    "upcycled, before training",
    "upcycled",
    "BTX, before its training",
    "BTX",
)


def real_step0() -> str:
    """Published models whose MLPs became mixtures, beside themselves."""
    r = load("real_step0")
    rows = [
        [f"{model}, {init}", f"{row['mixtures']}", f"{row['parameters'] / 1e6:.0f} M", *_differences(row)]
        for model, made in r["models"].items()
        for init, row in made["inits"].items()
    ]
    header = ["", "mixtures", "parameters", "largest difference", "over the outputs' deviation"]
    return f"{table(header, rows)}\n{measured_on(r)}\n"


def _differences(row: dict[str, Any]) -> list[str]:
    return [f"{row[name]:.1e}" for name in ("largest difference", "over the deviation")]


def real_model() -> str:
    """Perplexities of SmolLM2 made sparse in several ways."""
    r = load("real_model")
    about = r["about"]
    rows = [
        [name, *(f"{row[column]:.2f}" for column in COLUMNS), f"{row['tokens'] / 1e3:.0f}"]
        for name, row in ((name, r["perplexity"][name]) for name in ROWS if name in r["perplexity"])
    ]
    words = (
        f"The last {about['trained blocks']} of {about['of']} blocks are trained, windows of {about['length']} tokens, "
        f"{about['batch']} a step; {about['held-out tokens of each domain']:,} held-out tokens of each domain. "
    )
    return f"{table(['perplexity', *COLUMNS, 'thousand tokens'], rows)}\n{words}{measured_on(r)}\n"


def real_pruned() -> str:
    """Perplexities of the upcycled SmolLM2 with half of its experts gone."""
    r = load("real_model")
    whole = {"all eight experts": r["perplexity"]["upcycled"]}
    cut = sorted(r["pruned to half"].items(), key=lambda item: item[1]["mean"])
    rows = [[name, *(f"{row[column]:.2f}" for column in COLUMNS)] for name, row in (*whole.items(), *cut)]
    return f"{table(['four of eight kept, by', *COLUMNS], rows)}\n{measured_on(r)}\n"


SURGERY: dict[str, Callable[[], str]] = {
    "real_step0": real_step0,
    "real_model": real_model,
    "real_pruned": real_pruned,
}
