"""The figures of docs/vision.md, from the committed result; `benchmarks.readme` puts them there."""

from collections.abc import Callable

from benchmarks.common import load, measured_on, table

NAMES = {
    "vit": "ViT with mixtures",
    "vit-dense": "its dense twin",
    "condconv": "convolutions, a kernel mixed per image",
    "conv-routed": "convolutions, an expert chosen per image",
    "conv-dense": "their dense twin",
}


def vision_models() -> str:
    """Every model on Fashion-MNIST."""
    r = load("vision")
    rows = [
        [
            NAMES[name],
            f"{row['accuracy']:.2%}",
            f"{row['total']:,}",
            f"{row['active']:,}",
            f"{row['steps']:,}",
            f"{row['processor seconds']:.0f}",
            f"{row['runs']}",
        ]
        for name, row in r["models"].items()
    ]
    header = ["", "accuracy", "parameters", "active", "steps", "processor seconds", "runs"]
    return f"{table(header, rows)}\nMeans over the runs. {measured_on(r)}\n"


VISION: dict[str, Callable[[], str]] = {"vision_models": vision_models}
