"""Checks of settings: one line that says what was expected, what came, and what to do."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixtura.classical.columns import LARGEST
from mixtura.errors import UserError


def check_at_least(name: str, value: Any, least: float) -> None:
    """Refuse a hyper-parameter that is not a number of at least `least`.

    Example:
        >>> check_at_least("alpha", 1.0, 0)
    """
    if not isinstance(value, int | float | np.number) or not least <= value < np.inf:
        raise UserError(f"expected {name} a finite number of at least {least:g}, got {value!r}; pass one")


def check_whole(name: str, value: Any, least: int) -> None:
    """Refuse a setting that is not a whole number of at least `least`.

    Example:
        >>> check_whole("n_init", 5, 1)
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise UserError(f"expected {name} a whole number of at least {least}, got {value!r}; pass one")


def check_truth(name: str, value: Any) -> None:
    """Refuse a setting that is not True or False: any word would count as true.

    Example:
        >>> check_truth("prune", False)
    """
    if not isinstance(value, bool | np.bool_):
        raise UserError(f"expected {name} True or False, got {value!r}; pass one of them")


def check_size(name: str, values: NDArray[np.float64]) -> None:
    """Refuse numbers whose squares are no longer finite.

    Example:
        >>> check_size("X", np.array([1e100, -1e100]))
    """
    largest = max(float(values.max(initial=0.0)), -float(values.min(initial=0.0)))
    if not largest <= LARGEST:
        raise UserError(f"expected {name} at most {LARGEST:g} in size, got {largest:g}; rescale it")


def check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    """Refuse a setting that is none of the choices.

    Example:
        >>> check_choice("pooling", "highest", ("weighted", "highest"))
    """
    if not isinstance(value, str) or value not in choices:
        raise UserError(f"expected {name} one of {', '.join(choices)}, got {value!r}; choose one of them")
