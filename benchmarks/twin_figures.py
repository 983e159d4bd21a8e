"""Mixtures beside their dense twins over all kinds of training, from committed results."""

import statistics
from collections.abc import Callable

from benchmarks import classify, translation
from benchmarks.common import RESULTS, load, table


def twins() -> str:
    """What each kind's mixture reaches beside a dense model of equal active parameters."""
    quality = load("quality")["runs"]
    drawn, clothes = (
        {name: f"{row['distance']:.3f}" for name, row in load(which)["models"].items()}
        for which in ("generation", "generation_fashion")
    )
    vision, census = load("vision")["models"], load("multitask_census")["models"]
    losses = [f"{quality[name]['final']['mean']:.3f}" for name in ("mixture", "dense")]
    accuracy = {name: f"{row['accuracy']:.1%}" for name, row in vision.items()}
    rows = [
        ["language, lm-tiny: nats per byte at equal time", *losses, "lower", "[training](docs/training.md)"],
        ["images, ViT: accuracy", accuracy["vit"], accuracy["vit-dense"], "higher", "[vision](docs/vision.md)"],
        ["images, mixed kernels: accuracy", accuracy["condconv"], accuracy["conv-dense"], "higher", ""],
        ["images, routed convolutions: accuracy", accuracy["conv-routed"], accuracy["conv-dense"], "higher", ""],
        ["digits drawn, DiT: Fréchet distance", drawn["dit"], drawn["dit-dense"], "lower", ""],
        ["clothes drawn, DiT: Fréchet distance", clothes["dit"], clothes["dit-dense"], "lower", ""],
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
    scores = (models[name]["scores"]["4"].values() for name in translation.NAMES)
    cells = [f"{statistics.mean(score['BLEU'] for score in both):.1f}" for both in scores]
    return ["translation, two Bibles, both ways: BLEU", *cells, "higher", "[translation](docs/translation.md)"]


TEXTS: dict[str, Callable[[], str]] = {"classify": classify.figures}
TRANSLATION: dict[str, Callable[[], str]] = {"translation": translation.figures}
