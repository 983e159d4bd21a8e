"""Objects found: the mixture beside its dense twin on scenes of digits, by average precision.

    mixtura train detect-tiny --out runs/detection --name detect-tiny --threads 1
    mixtura train detect-tiny-dense --out runs/detection --name detect-tiny-dense --threads 1
    python -m benchmarks.detection --runs runs/detection

Both see the same scenes in the same order for as many steps; the scenes held out are of other digits.
"""

import argparse
import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.common import load, measured_on, save, table
from mixtura.train.inspect import evaluate_run
from mixtura.train.run import Run

RUNS = Path("runs/detection")
PICTURE = Path("docs/images/detection.png")
NAMES = {"detect-tiny": "with mixtures", "detect-tiny-dense": "dense twin"}
SCORES = ("mAP", "mAP50", "mAP small", "mAP large")


def measure(run: Run) -> dict[str, Any]:
    """What a finished run reached, and what it took."""
    facts = json.loads((run.folder / "config.json").read_text(encoding="utf-8"))
    last = json.loads(run.metrics.read_text(encoding="utf-8").splitlines()[-1])
    evaluation, _ = evaluate_run(run.folder)
    return {
        **{name: round(score, 4) for name, score in evaluation.scores.items()},
        "loss": round(evaluation.with_mean()["mean"], 4),
        **facts["parameters"],
        "steps": last["step"],
        "minutes": round(last["seconds"] / 60, 1),
    }


def panels(run: Run, kind: str) -> list[dict[str, Any]]:
    """The panels of one kind in a run's report."""
    seen = json.loads((run.folder / "observations.json").read_text(encoding="utf-8"))
    return [panel for panel in seen["panels"] if panel["kind"] == kind]


def collect(runs: Path) -> dict[str, Any]:
    """Both runs, the experts of the mixture by scale, and the picture of what it found."""
    mixture = Run(runs / "detect-tiny")
    data = mixture.read_config().data
    PICTURE.write_bytes(base64.b64decode(panels(mixture, "picture")[0]["png"]))
    experts = {
        panel["title"].removeprefix("Experts by scale, "): dict(zip(panel["rows"], panel["values"], strict=True))
        for panel in panels(mixture, "heatmap")
    }
    return {
        "models": {name: measure(Run(runs / name)) for name in NAMES},
        "scenes": {"train": data.scenes, "held out": data.val_scenes, "pixels": data.image_size},
        "experts": experts,
    }


def detection() -> str:
    """Both models, from the committed result."""
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
    """Which expert looks around which cells, from the committed result."""
    shares = load("detection")["experts"]["around.moe"]
    rows = [[where, *(f"{share:.0%}" for share in values)] for where, values in shares.items()]
    number = len(next(iter(shares.values())))
    return table(["cells of", *(f"dilation {n}" for n in range(1, number + 1))], rows)


FIGURES: dict[str, Callable[[], str]] = {"detection": detection, "detection_experts": detection_experts}


def main() -> None:
    """Look at both runs, and write benchmarks/results/detection.json and the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=RUNS, help="folder of the two runs")
    result = collect(parser.parse_args().runs)
    print(json.dumps(result["models"], indent=1))
    print(save("detection", result))


if __name__ == "__main__":
    main()
