"""What linear predictors see of X, and how small a noise may become."""

from dataclasses import dataclass
from itertools import combinations_with_replacement

import numpy as np
from numpy.typing import NDArray

from mixtura.classical.checks import check_size
from mixtura.classical.columns import Array
from mixtura.classical.data import pick


@dataclass(frozen=True, kw_only=True)
class Features:
    """The columns that an expert looks at and the polynomial terms made of them.

    Example:
        >>> Features(columns=None, degree=2)(np.array([[2.0, 3.0]]))
        array([[2., 3., 4., 6., 9.]])
    """

    columns: NDArray[np.intp] | None
    degree: int = 1

    def __call__(self, X: Array) -> Array:
        """Give the features of X: its chosen columns, then all products of up to `degree` of them."""
        chosen = pick(X, self.columns)
        with np.errstate(over="ignore"):  # what overflows is refused below
            terms = [
                np.prod(chosen[:, list(factors)], axis=1)
                for degree in range(2, self.degree + 1)
                for factors in combinations_with_replacement(range(chosen.shape[1]), degree)
            ]
        if not terms:
            return chosen
        features = np.column_stack([chosen, *terms])
        check_size(f"products of {self.degree} columns", features)
        return features


def variance_floor(y: Array, sample_weight: Array, relative: float) -> Array:
    """Give the smallest variance allowed to each output (n_outputs,): a share of its variance in the data.

    Constant targets have no variance; they get a floor at the rounding of their size, or 1e-24 where all are zero.

    Example:
        >>> variance_floor(np.array([[0.0, 7.0], [2.0, 7.0]]), np.ones(2), 1e-6)[0]
        np.float64(1e-06)
    """
    mean = np.average(y, axis=0, weights=sample_weight)
    variance = np.average((y - mean) ** 2, axis=0, weights=sample_weight)
    floor = np.maximum(max(relative, 1e-24) * variance, (1e-8 * mean) ** 2)
    return np.where(floor > np.finfo(float).tiny, floor, 1e-24)


def floor_warnings(floored: NDArray[np.bool_]) -> list[str]:
    """Say which experts fit their share so well that the noise had to be floored.

    Example:
        >>> floor_warnings(np.array([False, True]))
        ['the variance of expert 1 fell to the floor (variance_floor)']
    """
    where = ", ".join(map(str, np.flatnonzero(floored)))
    return [f"the variance of expert {where} fell to the floor (variance_floor)"] if where else []
