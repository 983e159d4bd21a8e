"""Named runs: each a function that returns a `TrainConfig`; its docstring tells cost and measured result."""

import inspect
from collections.abc import Callable
from dataclasses import replace

from mixtura.errors import UserError
from mixtura.models.gpt import GPTConfig
from mixtura.train.config import TrainConfig
from mixtura.train.data.config import DataConfig
from mixtura.train.optim import OptimConfig
from mixtura.train.tasks.language import LanguageConfig
from mixtura.train.tasks.tabular import TabularConfig

Recipe = Callable[[], TrainConfig]


def lm_tiny() -> LanguageConfig:
    """A small language model on the text every Python installation carries: 32 experts, one chosen.

    Cost: about 3 minutes on 2 CPU cores, 1 GB of memory. Result: 1.32 nats per byte (1.90 bits), plain mean over
    held-out C, prose, Python and tests; docs/log.md, 2026-11-22.

    Example:
        >>> lm_tiny().model.num_experts
        32
    """
    return LanguageConfig(
        recipe="lm-tiny",
        model=GPTConfig(
            dim=64,
            layers=2,
            heads=2,
            hidden=128,
            num_experts=32,
            k=1,
            moe_every=2,
            router="switch",
            # Three times the customary coefficient: with 1e-2 the busiest expert got twice the mean and two idled.
            losses={**GPTConfig().losses, "load_balance": 3e-2},
        ),
        data=DataConfig(vocab_size=512, seq_len=128, batch_size=32),
        steps=2700,
        eval_interval=450,
        checkpoint_interval=450,
    )


def lm_tiny_dense() -> LanguageConfig:
    """The dense twin of lm-tiny: equal active parameters, no experts.

    Result: 1.49 nats per byte after 3,018 steps, which take as long as lm-tiny; docs/log.md, 2026-11-22.

    Example:
        >>> lm_tiny_dense().model.num_experts
        0
    """
    base = lm_tiny()
    return replace(base, recipe="lm-tiny-dense", model=replace(base.model, num_experts=0))


def tabular() -> TabularConfig:
    """Several labels of one table by shared experts under a gate for each: Census-Income, or your own CSV or Parquet.

    Your own: `--data.path orders.csv --data.labels returned stars:multiclass`.

    Cost: about a minute on one CPU core. Result: docs/multitask.md.

    Example:
        >>> tabular().model.architecture
        'mmoe'
    """
    return TabularConfig(
        recipe="tabular",
        optim=OptimConfig(lr=4e-3, weight_decay=1e-2, warmup=60),
        steps=585,  # three epochs of Census-Income
        eval_interval=195,
        checkpoint_interval=195,
    )


RECIPES: dict[str, Recipe] = {"lm-tiny": lm_tiny, "lm-tiny-dense": lm_tiny_dense, "tabular": tabular}


def get_recipe(name: str) -> TrainConfig:
    """The configuration of a named recipe.

    Raises:
        UserError: no recipe has that name.

    Example:
        >>> get_recipe("lm-tiny").recipe
        'lm-tiny'
    """
    if name not in RECIPES:
        raise UserError(f"expected a recipe among {', '.join(RECIPES)}; got {name!r}; `mixtura recipes` tells more")
    return RECIPES[name]()


def describe(name: str) -> str:
    """What a recipe is, costs and reaches: its docstring up to the example.

    Example:
        >>> describe("lm-tiny-dense").splitlines()[0]
        'The dense twin of lm-tiny: equal active parameters, no experts.'
    """
    return inspect.cleandoc(RECIPES[name].__doc__ or "").split("\nExample:")[0].strip()
