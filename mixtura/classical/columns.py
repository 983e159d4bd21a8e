"""The columns of a linear predictor, standardised block by block, so that no second copy of the data is ever made."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# Squares of larger numbers overflow; spreads below the inverse have squares that vanish, and count as none.
LARGEST = 1e150
# A block and its products with every expert's weights stay in the processor's second-level cache.
BLOCK_NUMBERS = 1 << 18


def blocks(n_rows: int, width: int) -> Iterator[slice]:
    """Cut `n_rows` rows into slices so that a block of `width` numbers a row fits the cache; at least 64 rows each.

    Example:
        >>> [block.stop - block.start for block in blocks(10_000, 64)]
        [4096, 4096, 1808]
    """
    step = max(64, BLOCK_NUMBERS // max(width, 1))
    return (slice(start, min(start + step, n_rows)) for start in range(0, n_rows, step))


@dataclass(frozen=True, kw_only=True)
class Columns:
    """A design matrix: the columns of `X`, centred and scaled on the fly, then a column of ones if `intercept`.

    Sums of products are formed from standardised columns, so that a column of years or of time stamps costs no digits;
    coefficients go in and out in the units of `X`.

    Shapes: X (n_samples, n_features), center and scale (n_features,).

    Example:
        >>> Columns.of(np.array([[1.0], [3.0]])).block(slice(0, 2))
        array([[-1.,  1.],
               [ 1.,  1.]])
    """

    X: Array
    center: Array
    scale: Array
    intercept: bool = True

    @classmethod
    def of(cls, X: Array, *, sample_weight: Array | None = None, intercept: bool = True) -> "Columns":
        """Measure weighted means and spreads; a constant column keeps scale 1, without intercept nothing is centred.

        A column that varies by less than 1 / LARGEST counts as constant.
        """
        center = np.average(X, axis=0, weights=sample_weight) if intercept else np.zeros(X.shape[1])
        extent = _extent(X, center)
        # Rounding in the mean leaves a constant column an extent of some units in the last place.
        varies = extent > np.maximum(1e-13 * np.abs(center), 1.0 / LARGEST)
        unit = np.where(varies, extent, np.maximum(np.abs(center), 1.0))
        square, total = np.zeros(X.shape[1]), 0.0
        for rows in blocks(len(X), X.shape[1]):
            weight = np.ones(rows.stop - rows.start) if sample_weight is None else sample_weight[rows]
            square += weight @ ((X[rows] - center) / unit) ** 2
            total += float(weight.sum())
        spread = unit * np.sqrt(square / total)
        return cls(X=X, center=center, scale=np.where(varies & (spread > 0), spread, 1.0), intercept=intercept)

    @property
    def size(self) -> int:
        """The number of coefficients, the intercept included."""
        return int(self.X.shape[1]) + self.intercept

    def block(self, rows: slice) -> Array:
        """Give the standardised columns of some rows, one column a line: (size, n_rows)."""
        block = np.empty((self.size, rows.stop - rows.start))
        features = block[: self.X.shape[1]]
        np.subtract(self.X[rows].T, self.center[:, None], out=features)
        features /= self.scale[:, None]
        block[self.X.shape[1] :] = 1.0
        return block

    def take(self, rows: NDArray[np.intp]) -> "Columns":
        """Give the same columns of some rows, standardised as before."""
        return Columns(X=self.X[rows], center=self.center, scale=self.scale, intercept=self.intercept)

    def standardise(self, coef: Array, intercept: Array) -> Array:
        """Turn coefficients (n_outputs, n_features) and intercepts of X into those of the blocks (n_outputs, size)."""
        if not self.intercept:
            return coef * self.scale
        return np.column_stack([coef * self.scale, intercept + coef @ self.center])

    def restore(self, weights: Array) -> tuple[Array, Array]:
        """Turn coefficients of the blocks into those of `X` and intercepts (zero without one); undoes `standardise`."""
        coef = weights[:, : self.X.shape[1]] / self.scale
        constant = weights[:, -1] if self.intercept else np.zeros(len(weights))
        return coef, constant - coef @ self.center

    def penalty(self, strength: float) -> Array:
        """Give the diagonal (size,) by which blocks' coefficients are penalised like `strength * ||coef||^2` of X's.

        The intercept is free.
        """
        return np.append(strength / self.scale**2, [0.0] * self.intercept)


def _extent(X: Array, center: Array) -> Array:
    parts = [np.abs(X[rows] - center).max(axis=0) for rows in blocks(len(X), X.shape[1])]
    extent: Array = np.max(parts, axis=0)
    return extent


def linear_map(X: Array, coef: Array, intercept: Array) -> Array:
    """Give `X @ coef.T + intercept` (n_samples, n_outputs), stored output by output, as every later step reads it."""
    out = np.empty((len(coef), len(X)))
    np.matmul(coef, X.T, out=out)
    out += intercept[:, None]
    return out.T
