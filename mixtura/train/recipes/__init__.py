"""Named runs: each a function that returns a `TrainConfig`; its docstring tells cost and measured result."""

import inspect
from collections.abc import Callable
from importlib import import_module

from mixtura.errors import UserError
from mixtura.train.config import TrainConfig

Recipe = Callable[[], TrainConfig]

# Name -> the module here that has it, imported only when it is asked for; the function has the name's underscores.
RECIPES = {
    "lm-tiny": "language",
    "lm-tiny-dense": "language",
    "lm-small": "language",
    "lm-finegrained": "language",
    "lm-switch": "language",
    "classify-tiny": "classification",
    "classify-tiny-dense": "classification",
    "tabular": "tabular",
    "vit-tiny": "images",
    "vit-tiny-dense": "images",
    "vit-fashion": "images",
    "vit-fashion-dense": "images",
    "dit-tiny": "images",
    "dit-tiny-dense": "images",
    "detect-tiny": "detection",
    "detect-tiny-dense": "detection",
    "detect-fashion": "detection",
    "detect-fashion-dense": "detection",
    "translate-tiny": "translation",
    "translate-tiny-dense": "translation",
}


def find_recipe(name: str) -> Recipe:
    """The function of a named recipe.

    Raises:
        UserError: no recipe has that name.

    Example:
        >>> find_recipe("lm-tiny").__name__
        'lm_tiny'
    """
    if name not in RECIPES:
        raise UserError(f"expected a recipe among {', '.join(RECIPES)}; got {name!r}; `mixtura recipes` tells more")
    recipe: Recipe = getattr(import_module(f"mixtura.train.recipes.{RECIPES[name]}"), name.replace("-", "_"))
    return recipe


def get_recipe(name: str) -> TrainConfig:
    """The configuration of a named recipe.

    Raises:
        UserError: no recipe has that name.

    Example:
        >>> get_recipe("lm-tiny").recipe
        'lm-tiny'
    """
    return find_recipe(name)()


def describe(name: str) -> str:
    """What a recipe is, costs and reaches: its docstring up to the example.

    Example:
        >>> describe("lm-tiny-dense").splitlines()[0]
        'The dense twin of lm-tiny: equal active parameters, no experts.'
    """
    return inspect.cleandoc(find_recipe(name).__doc__ or "").split("\nExample:")[0].strip()
