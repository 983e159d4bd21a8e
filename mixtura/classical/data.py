"""Training data as one checked value, and the choice of columns that an expert or a gate looks at."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixtura.classical.columns import Array
from mixtura.errors import UserError

ColumnChoice = Sequence[int | str] | None


@dataclass(frozen=True, kw_only=True)
class Data:
    """What experts and gates are fitted on; rows without weight are left out before.

    Shapes: X (n_samples, n_features); y (n_samples, n_outputs) for regression, or (n_samples,) whole numbers 0 to
    n_classes - 1; sample_weight (n_samples,), positive. `classes` holds the user's labels and is empty for
    regression.

    Example:
        >>> data = Data(X=np.ones((3, 2)), y=np.ones((3, 1)), sample_weight=np.ones(3))
        >>> data.n_samples, data.total
        (3, 3.0)
    """

    X: Array
    y: NDArray[Any]
    sample_weight: Array
    classes: NDArray[Any] = field(default_factory=lambda: np.array([]))
    feature_names: tuple[str, ...] | None = None

    @property
    def n_classes(self) -> int:
        """The number of classes, 0 for regression."""
        return len(self.classes)

    @property
    def n_samples(self) -> int:
        """The number of rows."""
        return len(self.X)

    @property
    def form(self) -> str:
        """What a model that goes on from an earlier fit must find again, in words."""
        of = f"classes {self.classes.tolist()}" if self.n_classes else f"{self.y.shape[1]} output(s)"
        return f"{self.X.shape[1]} column(s) and {of}"

    @property
    def total(self) -> float:
        """The sum of the weights: the number of rows, where a weight of two is a row that occurs twice."""
        return float(self.sample_weight.sum())

    def column_numbers(self, columns: ColumnChoice) -> NDArray[np.intp] | None:
        """Turn a choice of columns, by number or by name, into numbers; None stands for all of them."""
        return column_numbers(columns, self.X.shape[1], self.feature_names)


def column_numbers(
    columns: ColumnChoice, n_features: int, feature_names: tuple[str, ...] | None = None
) -> NDArray[np.intp] | None:
    """Turn a choice of columns, by number or by name, into numbers; None stands for all of them.

    Example:
        >>> column_numbers(["b", "a"], 2, ("a", "b")), column_numbers([-1], 3), column_numbers(None, 3)
        (array([1, 0]), array([2]), None)
    """
    if columns is None:
        return None
    if isinstance(columns, str | int | np.integer):
        raise UserError(f"expected a list of columns, got {columns!r}; write [{columns!r}]")
    numbers = []
    for column in columns:
        if isinstance(column, str):
            if feature_names is None or column not in feature_names:
                known = "no names (fit on a DataFrame)" if feature_names is None else ", ".join(feature_names)
                raise UserError(f"expected a column of X, got {column!r}; X has {known}")
            numbers.append(feature_names.index(column))
        elif isinstance(column, bool | np.bool_) or not isinstance(column, int | np.integer):
            raise UserError(f"expected columns by number or name, got {column!r}; a mask needs np.flatnonzero")
        elif not -n_features <= column < n_features:
            raise UserError(f"expected a column number below {n_features}, got {column}; X has {n_features} columns")
        else:
            numbers.append(column % n_features)
    return np.array(numbers, dtype=np.intp)


def pick(X: Array, numbers: NDArray[np.intp] | None) -> Array:
    """Give the chosen columns of X, without a copy if all are chosen.

    Example:
        >>> pick(np.eye(3), np.array([2]))[:, 0]
        array([0., 0., 1.])
    """
    return X if numbers is None else X[:, numbers]
