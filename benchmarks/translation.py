"""Does a translator with mixtures beat its dense twin at equal steps, and do its experts tell languages apart?

    mixtura train translate-tiny --name translate-tiny --threads 1
    mixtura train translate-tiny-dense --name translate-tiny-dense --threads 1
    python -m benchmarks.translation --runs runs

The best checkpoint of each finished run translates the held-out books greedily and by beam search.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import RESULTS, load, measured_on, save, table
from mixtura.models.translator import Translator
from mixtura.observe.metrics import mutual_information
from mixtura.train.inspect import load_model
from mixtura.train.run import open_run
from mixtura.train.step import evaluate
from mixtura.train.tasks.task import Task
from mixtura.train.tasks.translation import TranslationConfig, TranslationTask
from mixtura.train.tasks.translations import (
    experts_by_direction,
    held_out_translations,
    main_share,
    scores,
    shares_by_language,
)

NAMES = ("translate-tiny", "translate-tiny-dense")
TITLES = {"translate-tiny": "mixture", "translate-tiny-dense": "dense twin"}
LN2 = 0.6931471805599453


@torch.no_grad()
def measure(folder: Path, beams: tuple[int, ...], task: TranslationTask | None) -> tuple[dict[str, Any], Task]:
    """What the best checkpoint of a run reaches."""
    run = open_run(folder)
    model, config = load_model(run, checkpoint="best")
    assert isinstance(config, TranslationConfig)
    assert isinstance(model, Translator)
    torch.set_num_threads(1)
    task = TranslationTask(config, (task or config.prepare()).data)
    facts = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    last = json.loads(run.metrics.read_text(encoding="utf-8").splitlines()[-1])
    row: dict[str, Any] = {
        "steps": last["step"],
        "target tokens": last["items"],
        "minutes": round(last["seconds"] / 60, 1),
        "parameters": facts["parameters"],
        "nats per token": evaluate(model, task).with_mean(),
        "scores": {},
    }
    for beam in beams:
        found = scores(task, held_out_translations(model, task, beam=beam))
        row["scores"][str(beam)] = {
            direction: {"BLEU": round(one.bleu, 2), "chrF": round(one.chrf, 2)} for direction, one in found.items()
        }
        row["signatures"] = next(iter(found.values())).signatures
    seen = experts_by_direction(model, task)
    for name, layer in seen["layers"].items():
        share = shares_by_language(seen["domains"], layer["counts"])
        row.setdefault("experts", {})[name.removesuffix(".feed_forward")] = {
            "bits": round(mutual_information(share) / LN2, 3),
            "own language": round(main_share(share), 3),
        }
    return row, task


def data_of(task: TranslationTask) -> dict[str, Any]:
    """What was learned from and judged by."""
    config, data = task.config.data, task.data
    return {
        "held out": list(config.held_out),
        "longest, tokens": config.max_tokens,
        "tokens": data.codec.vocab_size,
        "train": {direction: len(data.train.of(direction)) for direction in data.directions},
        "val": {direction: len(data.val.of(direction)) for direction in data.directions},
        "left out": data.report.removeprefix("left out: "),
    }


def figures() -> str:
    """Scores, and experts by language, from the committed result; before there is one, how to make it."""
    if not (RESULTS / "translation.json").exists():
        return "Not measured yet: train both recipes, then `python -m benchmarks.translation --runs runs` tells.\n"
    result = load("translation")
    models, data = result["models"], result["data"]
    directions = list(data["train"])
    header = ["", *(f"{what} {d.replace('-', ' to ')}" for what in ("BLEU", "chrF") for d in directions)]
    rows = []
    for name, model in models.items():
        for beam, found in model["scores"].items():
            how = "greedy" if beam == "1" else f"beam of {beam}"
            cells = [f"{found[d][what]:.1f}" for what in ("BLEU", "chrF") for d in directions]
            rows.append([f"{TITLES[name]}, {how}", *cells])
    facts = [
        [
            TITLES[name],
            f"{model['nats per token']['mean']:.3f}",
            f"{model['parameters']['active']:,}",
            f"{model['parameters']['total']:,}",
            f"{model['steps']:,}",
            f"{model['minutes']:.0f}",
        ]
        for name, model in models.items()
    ]
    columns = ["", "nats per target token", "active parameters", "all parameters", "steps", "minutes"]
    experts = [
        [layer, f"{row['bits']:.3f}", f"{row['own language']:.0%}"]
        for layer, row in models["translate-tiny"]["experts"].items()
    ]
    books = ", ".join(data["held out"])
    pairs = f"{data['train'][directions[0]]:,} verses of at most {data['longest, tokens']} tokens"
    said = f"{pairs} learned from, {data['val'][directions[0]]:,} of {books} held out; left out: {data['left out']}."
    signatures = next(iter(models.values()))["signatures"]
    return "\n".join(
        [
            said + "\n",
            table(header, rows),
            f"sacrebleu: BLEU `{signatures[0]}`, chrF `{signatures[1]}`.\n",
            table(columns, facts),
            table(["mixture", "mutual information of expert and language, bits of 1", "own language"], experts),
            f"{measured_on(result)}\n",
        ]
    )


def main() -> None:
    """Measure both finished runs, and write benchmarks/results/translation.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the two runs")
    parser.add_argument("--beams", type=int, nargs="+", default=[1, 4])
    options = parser.parse_args()
    models, task = {}, None
    for name in NAMES:
        models[name], task = measure(options.runs / name, tuple(options.beams), task)
        print(name, json.dumps(models[name], indent=1), flush=True)
    assert task is not None
    print(save("translation", {"data": data_of(task), "models": models}))


if __name__ == "__main__":
    main()
