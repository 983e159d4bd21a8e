"""Named runs: each a function that returns a `TrainConfig`; its docstring tells cost and measured result."""

import inspect
from collections.abc import Callable

from mixtura.errors import UserError
from mixtura.train.config import TrainConfig
from mixtura.train.recipes.language import lm_finegrained, lm_small, lm_switch, lm_tiny, lm_tiny_dense
from mixtura.train.recipes.tabular import tabular

Recipe = Callable[[], TrainConfig]

RECIPES: dict[str, Recipe] = {
    "lm-tiny": lm_tiny,
    "lm-tiny-dense": lm_tiny_dense,
    "lm-small": lm_small,
    "lm-finegrained": lm_finegrained,
    "lm-switch": lm_switch,
    "tabular": tabular,
}


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
