"""What does one training step of the default recipe cost, against the dense model of equal active parameters?

    python -m benchmarks.train_step

Both models train on fresh batches, in turn, after a warm-up in which the router finds its balance. The ratio is the
median over repeats of one step's time against the other's just beside it.
"""

import argparse
import statistics
from collections.abc import Callable
from dataclasses import replace

import torch

from benchmarks.common import interleave, save, spread
from mixtura.models.count import count_parameters
from mixtura.models.gpt import GPT
from mixtura.train.device import keep_freed_memory
from mixtura.train.metrics import measure
from mixtura.train.optim import build_optimizer
from mixtura.train.recipes import get_recipe
from mixtura.train.step import train_step
from mixtura.train.tasks.language import LanguageConfig


def make_step(config: LanguageConfig) -> tuple[GPT, Callable[[], object]]:
    """A model and a function that trains it for one step, as the training loop does, log row included."""
    task = replace(config, steps=10_000).prepare()
    torch.manual_seed(config.seed)
    model = task.config.build_model()
    optimizer = build_optimizer(model, config.optim)
    stream = task.stream()

    def step() -> object:
        return measure(train_step(model, optimizer, stream, task=task, step=config.optim.warmup))

    return model, step


def compare(*, repeats: int, warmup: int) -> dict[str, object]:
    """Time both recipes' steps in turn."""
    keep_freed_memory()
    recipes = {name: get_recipe(name) for name in ("lm-tiny", "lm-tiny-dense")}
    built = {name: make_step(config) for name, config in recipes.items()}
    seconds = interleave({name: step for name, (_, step) in built.items()}, repeats=repeats, warmup=warmup)
    ratios = [moe / dense for moe, dense in zip(seconds["lm-tiny"], seconds["lm-tiny-dense"], strict=True)]
    data = recipes["lm-tiny"].data
    rows = {
        name: {
            **spread(seconds[name]),
            "tokens/s": round(data.batch_size * data.seq_len / statistics.median(seconds[name])),
            "parameters": count_parameters(model)._asdict(),
        }
        for name, (model, _) in built.items()
    }
    return {"ms per step": rows, "ratio": round(statistics.median(ratios), 3), "repeats": repeats, "warmup": warmup}


def main() -> None:
    """Measure, print, and write benchmarks/results/train_step.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--warmup", type=int, default=200)
    options = parser.parse_args()
    result = compare(repeats=options.repeats, warmup=options.warmup)
    print(result)
    print(save("train_step", result))


if __name__ == "__main__":
    main()
