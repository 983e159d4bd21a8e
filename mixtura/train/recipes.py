"""Named runs: each a function that returns a `TrainConfig`; its docstring tells cost and measured result."""

import inspect
from collections.abc import Callable
from dataclasses import replace

from mixtura.errors import UserError
from mixtura.train.config import TrainConfig

Recipe = Callable[[], TrainConfig]


def lm_tiny() -> TrainConfig:
    """Byte-level language model on the text every Python installation carries: 16 experts, one chosen.

    Example:
        >>> lm_tiny().model.num_experts
        16
    """
    return TrainConfig(recipe="lm-tiny", steps=3000)


def lm_tiny_dense() -> TrainConfig:
    """The dense twin of lm-tiny: equal active parameters, no experts.

    Example:
        >>> lm_tiny_dense().model.num_experts
        0
    """
    base = lm_tiny()
    return replace(base, recipe="lm-tiny-dense", model=replace(base.model, num_experts=0))


RECIPES: dict[str, Recipe] = {"lm-tiny": lm_tiny, "lm-tiny-dense": lm_tiny_dense}


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
        >>> describe("lm-tiny-dense")
        'The dense twin of lm-tiny: equal active parameters, no experts.'
    """
    return inspect.cleandoc(RECIPES[name].__doc__ or "").split("\nExample:")[0].strip()
