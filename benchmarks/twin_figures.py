"""Mixtures beside their dense twins over all kinds of training, from committed results."""

from collections.abc import Callable

from benchmarks import classify, translation
from benchmarks.common import RESULTS, load, table


def twins() -> str:
    """What each kind's mixture reaches beside a dense model of equal active parameters."""
    quality = load("quality")["runs"]
    drawn = {name: f"{row['distance']:.3f}" for name, row in load("generation")["models"].items()}
    vision, census = load("vision")["models"], load("multitask_census")["models"]
    losses = [f"{quality[name]['final']['mean']:.3f}" for name in ("mixture", "dense")]
    accuracy = {name: f"{row['accuracy']:.1%}" for name, row in vision.items()}
    rows = [
        ["language, lm-tiny: nats per byte at equal time", *losses, "lower", "[training](docs/training.md)"],
        ["images, ViT: accuracy", accuracy["vit"], accuracy["vit-dense"], "higher", "[vision](docs/vision.md)"],
        ["images, mixed kernels: accuracy", accuracy["condconv"], accuracy["conv-dense"], "higher", ""],
        ["images, routed convolutions: accuracy", accuracy["conv-routed"], accuracy["conv-dense"], "higher", ""],
        ["images drawn, DiT: Fréchet distance", drawn["dit"], drawn["dit-dense"], "lower", ""],
        [
            "several labels, MMoE beside a shared bottom: AUC",
            *(f"{census[name]['mean']:.4f}" for name in ("MMoE", "shared bottom")),
            "higher",
            "[multi-task](docs/multitask.md)",
        ],
    ]
    if (RESULTS / "classify.json").exists():
        for what, part in load("classify").items():
            if what != "machine":
                scores = [f"{part['rows'][name]['macro F1']:.3f}" for name in ("classify-tiny", "classify-tiny-dense")]
                rows.append([f"texts, {what}: macro F1", *scores, "higher", "[texts](docs/texts.md)"])
    if (RESULTS / "detection.json").exists():
        found = {name: f"{row['mAP']:.3f}" for name, row in load("detection")["models"].items()}
        scores = [found["detect-tiny"], found["detect-tiny-dense"]]
        rows.append(["objects in scenes of digits: mAP", *scores, "higher", "[detection](docs/detection.md)"])
    if (RESULTS / "translation.json").exists():
        rows.append(_translation())
    return table(["", "mixture", "dense twin", "better is", ""], rows)


def _translation() -> list[str]:
    models = load("translation")["models"]
    cells = [f"{models[name]['nats per token']['mean']:.3f}" for name in translation.NAMES]
    return ["translation, two Bibles: nats per token", *cells, "lower", "[translation](docs/translation.md)"]


TEXTS: dict[str, Callable[[], str]] = {"classify": classify.figures}
TRANSLATION: dict[str, Callable[[], str]] = {"translation": translation.figures}
