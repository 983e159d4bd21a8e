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


def vision_capacity() -> str:
    """Accuracy at each capacity in evaluation, by the order in which patches are served."""
    r = load("vision")["capacity"]
    rows = [[name, *(f"{value:.2%}" for value in values)] for name, values in r["accuracy"].items()]
    figures = table(["capacity C", *(f"{c:g}" for c in r["C"])], rows)
    order, priority = r["accuracy"]["token order"], r["accuracy"]["batch priority"]
    above = sum(a >= b for a, b in zip(priority, order, strict=True))
    sentence = f"Batch priority is at or above token order at {above} of {len(order)} capacities."
    dense, together = f"The dense twin reaches {r['dense twin']:.2%}.", r["images routed together"]
    about = f"The first {r['images']:,} held-out images, {together} routed together."
    return f"{figures}\n{sentence} {dense} {about}\n"


def generation(name: str = "generation") -> str:
    """Both generators, on the digits or on clothes."""
    r = load(name)
    names = {"dit": "DiT with mixtures", "dit-dense": "its dense twin"}
    keys = ("distance", "held-out squared error", "drawn as asked, says the classifier")
    rows = [
        [
            names[name],
            f"{row[keys[0]]:.3f}",
            f"{row[keys[1]]:.4f}",
            f"{row[keys[2]]:.1%}",
            f"{row['total']:,}",
            f"{row['active']:,}",
            f"{row['processor seconds']:.0f}",
            f"{row['runs']}",
        ]
        for name, row in r["models"].items()
    ]
    rows.append(["real ones, held out", f"{r['distance of held-out images']:.3f}", *[""] * 6])
    header = ["", *keys, "parameters", "active", "processor seconds", "runs"]
    right = r["classifier's accuracy"]
    return f"{table(header, rows)}\nThe classifier is right on {right:.1%} of held-out images. {measured_on(r)}\n"


VISION: dict[str, Callable[[], str]] = {
    "vision_models": vision_models,
    "vision_capacity": vision_capacity,
    "generation": generation,
    "generation_fashion": lambda: generation("generation_fashion"),
}
