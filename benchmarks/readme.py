"""Fill the pages' figures from the committed results: `python -m benchmarks.readme`.

A block between `<!-- result: NAME -->` and `<!-- end -->` is made by the function of that name, below or in the page's
own module; nothing in it is typed by hand, and a test compares the pages with the results.
"""

import re
from collections.abc import Callable
from pathlib import Path

from benchmarks import (
    classical_figures,
    detection,
    experts,
    layer_figures,
    multitask_figures,
    parallel_figures,
    stability,
    surgery_figures,
    twin_figures,
    vision_figures,
)
from benchmarks.common import load, measured_on, table

README = Path(__file__).parent.parent / "README.md"
BLOCK = re.compile(r"(<!-- result: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


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
    return facts + "\n" + table(["held-out text", "nats/byte", "bits/byte"], rows) + f"\n{measured_on(r)}\n"


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
    figures = table(["model", "steps", "seconds", "validation loss, nats/byte"], rows)
    return f"{figures}\n{' '.join(sentences)}\n{measured_on(r)}\n"


def step() -> str:
    """The cost of a training step."""
    r = load("train_step")
    rows = [
        [name, f"{row['median']:.1f}", f"{row['tokens/s']:,}", f"{row['parameters']['total']:,}"]
        for name, row in r["ms per step"].items()
    ]
    figures = table(["recipe", "ms per step", "tokens/s", "parameters"], rows)
    return f"{figures}\nRatio, median of {r['repeats']} interleaved pairs: {r['ratio']:.2f}. {measured_on(r)}\n"


DOCS = README.parent / "docs"
PAGES: dict[Path, dict[str, Callable[[], str]]] = {
    README: {
        "train": train,
        "quality": quality,
        "twins": twin_figures.twins,
        "layer_summary": layer_figures.layer_summary,
        "step": step,
    },
    DOCS / "training.md": {"experts": experts.figures, "stability": stability.figures},
    DOCS / "speed.md": layer_figures.SPEED,
    DOCS / "routers.md": layer_figures.ROUTERS,
    DOCS / "hub.md": layer_figures.HUB,
    DOCS / "parallel.md": parallel_figures.PARALLEL,
    DOCS / "surgery.md": surgery_figures.SURGERY,
    DOCS / "classical.md": classical_figures.CLASSICAL,
    DOCS / "hme.md": classical_figures.HME,
    DOCS / "texts.md": twin_figures.TEXTS,
    DOCS / "detection.md": detection.FIGURES,
    DOCS / "translation.md": twin_figures.TRANSLATION,
    DOCS / "vision.md": vision_figures.VISION,
    DOCS / "multitask.md": multitask_figures.MULTITASK,
}


def fill(page: Path) -> str:
    """The page with every block made afresh."""
    makers = PAGES[page]
    return BLOCK.sub(lambda match: f"{match[1]}{makers[match[2]]()}{match[3]}", page.read_text(encoding="utf-8"))


if __name__ == "__main__":
    for filled in PAGES:
        filled.write_text(fill(filled), encoding="utf-8")
