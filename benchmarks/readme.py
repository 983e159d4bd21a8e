"""Fill the README's figures from the committed results: `python -m benchmarks.readme`.

A block between `<!-- result: NAME -->` and `<!-- end -->` is made by the function of that name below; nothing in it is
typed by hand, and a test compares the page with the results.
"""

import re
from collections.abc import Callable
from pathlib import Path

from benchmarks.common import load

README = Path(__file__).parent.parent / "README.md"
BLOCK = re.compile(r"(<!-- result: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def _machine(result: dict) -> str:
    m = result["machine"]
    return f"{m['cpu']}, {m['threads']} threads, torch {m['torch']}, {m['date']}"


def train() -> str:
    """The default recipe's run: minutes, speed, memory and loss by domain."""
    r = load("train")
    losses = r["validation loss"]
    rows = [[name, f"{loss:.3f}", f"{loss / 0.693147:.3f}"] for name, loss in losses.items()]
    facts = (
        f"`make train`: {r['minutes to install']:.1f} min to install, {r['minutes']:.1f} min to run, "
        f"{r['tokens/s']:,} tokens/s, {r['peak memory MB']:,} MB at the peak, {r['steps']:,} steps, "
        f"{r['parameters']['total']:,} parameters, {r['parameters']['active']:,} active per token.\n"
    )
    return facts + "\n" + _table(["held-out text", "nats/byte", "bits/byte"], rows) + f"\n{_machine(r)}\n"


def quality() -> str:
    """The mixture against the dense model of equal active parameters, at equal wall time."""
    r = load("quality")
    rows = [
        [name, f"{run['steps']:,}", f"{run['seconds']:.0f}", f"{run['final']['mean']:.3f}"]
        for name, run in r["runs"].items()
    ]
    reached = r["reaches the dense model's final loss after this share of its time"]
    sentences = [
        f"The {name} reaches the dense model's final loss after {share:.0%} of its time."
        if share is not None
        else f"The {name} does not reach the dense model's final loss."
        for name, share in reached.items()
    ]
    table = _table(["model", "steps", "seconds", "validation loss, nats/byte"], rows)
    return f"{table}\n{' '.join(sentences)}\n{_machine(r)}\n"


def step() -> str:
    """The cost of a training step."""
    r = load("train_step")
    rows = [
        [name, f"{row['median']:.1f}", f"{row['tokens/s']:,}", f"{row['parameters']['total']:,}"]
        for name, row in r["ms per step"].items()
    ]
    table = _table(["recipe", "ms per step", "tokens/s", "parameters"], rows)
    return f"{table}\nRatio, median of {r['repeats']} interleaved pairs: {r['ratio']:.2f}. {_machine(r)}\n"


MAKERS: dict[str, Callable[[], str]] = {"train": train, "quality": quality, "step": step}


def fill(text: str) -> str:
    """The page with every block made afresh."""
    return BLOCK.sub(lambda match: f"{match[1]}{MAKERS[match[2]]()}{match[3]}", text)


if __name__ == "__main__":
    README.write_text(fill(README.read_text(encoding="utf-8")), encoding="utf-8")
