"""Objects found: mixtures beside their dense twins on scenes of digits and of clothes, by average precision.

    for name in detect-tiny detect-tiny-dense detect-fashion detect-fashion-dense; do
        mixtura train $name --out runs/detection --name $name --threads 1
    done
    python -m benchmarks.detection --runs runs/detection

Twins see the same scenes in the same order for as many steps; the scenes held out are of other images.
"""

import argparse
import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.common import load, measured_on, save, table
from mixtura.train.run import Run

RUNS = Path("runs/detection")
PICTURE = Path("docs/images/detection.png")
NAMES = {
    "detect-tiny": "digits, with mixtures",
    "detect-tiny-dense": "digits, dense twin",
    "detect-fashion": "clothes, with mixtures",
    "detect-fashion-dense": "clothes, dense twin",
}
SCORES = ("mAP", "mAP50", "mAP small", "mAP large")


def measure(run: Run) -> dict[str, Any]:
    """What the best checkpoint of a finished run reached on held-out scenes, and what the run took."""
    facts = json.loads((run.folder / "config.json").read_text(encoding="utf-8"))
    rows = [json.loads(line) for line in run.metrics.read_text(encoding="utf-8").splitlines()]
    best = min((row for row in rows if "val_loss" in row), key=lambda row: row["val_loss"]["mean"])
    return {
        **{name: round(score, 4) for name, score in best["val_score"].items()},
        "loss": round(best["val_loss"]["mean"], 4),
        **facts["parameters"],
        "steps": rows[-1]["step"],
        "minutes": round(rows[-1]["seconds"] / 60, 1),
    }


def panels(run: Run, kind: str) -> list[dict[str, Any]]:
    """The panels of one kind in a run's report."""
    seen = json.loads((run.folder / "observations.json").read_text(encoding="utf-8"))
    return [panel for panel in seen["panels"] if panel["kind"] == kind]


def collect(runs: Path) -> dict[str, Any]:
    """The finished runs, the experts of the mixture on digits by scale, and the picture of what it found."""
    mixture = Run(runs / "detect-tiny")
    data = mixture.read_config().data
    PICTURE.write_bytes(base64.b64decode(panels(mixture, "picture")[0]["png"]))
    experts = {
        panel["title"].removeprefix("Experts by scale, "): dict(zip(panel["rows"], panel["values"], strict=True))
        for panel in panels(mixture, "heatmap")
    }
    return {
        "models": {name: measure(Run(runs / name)) for name in NAMES if (runs / name / "report.html").exists()},
        "scenes": {"train": data.scenes, "held out": data.val_scenes, "pixels": data.image_size},
        "experts": experts,
    }


def detection() -> str:
    """All models, from the committed result."""
    r = load("detection")
    rows = [
        [
            NAMES[name],
            *(f"{row[score]:.3f}" for score in SCORES),
            f"{row['total']:,}",
            f"{row['active']:,}",
            f"{row['steps']:,}",
            f"{row['minutes']:.1f}",
        ]
        for name, row in r["models"].items()
    ]
    scenes, side = r["scenes"], r["scenes"]["pixels"]
    about = f"{scenes['train']:,} scenes of {side} x {side} to learn from, {scenes['held out']} held out."
    header = ["", *SCORES, "parameters", "active", "steps", "minutes"]
    return f"{table(header, rows)}\n{about} {measured_on(r)}\n"


def detection_experts() -> str:
    """Which expert of both mixtures works on which cells, from the committed result."""
    experts = load("detection")["experts"]
    tables = []
    for name, number_of in (("around.moe", "dilation"), ("head", "expert")):
        rows = [[where, *(f"{share:.0%}" for share in values)] for where, values in experts[name].items()]
        first = 1 if name == "around.moe" else 0
        columns = [f"{number_of} {first + place}" for place in range(len(rows[0]) - 1)]
        tables.append(table([f"{name.partition('.')[0]}: cells of", *columns], rows))
    return "\n".join(tables)


FIGURES: dict[str, Callable[[], str]] = {"detection": detection, "detection_experts": detection_experts}


def main() -> None:
    """Look at the runs, and write benchmarks/results/detection.json and the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=RUNS, help="folder of the runs")
    result = collect(parser.parse_args().runs)
    print(json.dumps(result["models"], indent=1))
    print(save("detection", result))


if __name__ == "__main__":
    main()
