"""Divisions of the task that the user knows beforehand: EM begins with one, or `gate="fixed"` keeps it."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, clone
from sklearn.ensemble import IsolationForest
from sklearn.utils.validation import has_fit_parameter

from mixtura.classical.checks import check_at_least
from mixtura.classical.columns import Array, Columns
from mixtura.classical.data import ColumnChoice, Data, column_numbers
from mixtura.classical.initial import k_means
from mixtura.classical.softmax import log_softmax
from mixtura.errors import UserError

TRIES = 5  # of k-means


class FittedDivision(ABC):
    """A division that knows each expert's share of any row."""

    @abstractmethod
    def shares(self, X: Array) -> Array:
        """Give the shares of each row, shape (n_samples, n_experts); rows sum to one."""


class Division(BaseEstimator, ABC):
    """A kind of division: settings only."""

    @abstractmethod
    def fit(self, data: Data, n_experts: int, *, seed: int = 0) -> FittedDivision:
        """Learn what the division needs to know of the data; raises UserError if it has another number of parts."""


@dataclass(frozen=True, kw_only=True)
class CentroidShares(FittedDivision):
    """Shares by the distance to centres: centers (n_experts, n_features) in standardised units."""

    center: Array
    scale: Array
    centers: Array
    softness: float

    def shares(self, X: Array) -> Array:
        """Give all of a row to the nearest centre, or soft shares that fall with the squared distance."""
        standard = (X - self.center) / self.scale
        square = ((standard[:, None] - self.centers) ** 2).sum(axis=2)
        if self.softness == 0:
            return np.eye(len(self.centers))[square.argmin(axis=1)]
        return np.exp(log_softmax(-0.5 * square / self.softness**2))


class Centroids(Division):
    """Each row belongs to its nearest centre, in standardised columns.

    Args:
        centers: (n_experts, n_features) in the units of X; None finds them by k-means.
        softness: 0 gives each row to one expert; otherwise shares fall as `exp(-distance^2 / (2 softness^2))`.

    Example:
        >>> data = Data(X=np.array([[0.0], [1.0], [9.0]]), y=np.zeros((3, 1)), sample_weight=np.ones(3))
        >>> Centroids([[0.0], [8.0]]).fit(data, 2).shares(np.array([[3.0], [7.0]]))
        array([[1., 0.],
               [0., 1.]])
    """

    def __init__(self, centers: Any = None, *, softness: float = 0.0) -> None:
        self.centers = centers
        self.softness = softness

    def fit(self, data: Data, n_experts: int, *, seed: int = 0) -> CentroidShares:
        """Find or check the centres."""
        check_at_least("softness", self.softness, 0)
        columns = Columns.of(data.X, sample_weight=data.sample_weight)
        if self.centers is None:
            standard = (data.X - columns.center) / columns.scale
            rng = np.random.default_rng(seed)
            tries = [k_means(standard, data.sample_weight, n_clusters=n_experts, rng=rng) for _ in range(TRIES)]
            centers = min(tries, key=lambda found: float(found.inertia_)).cluster_centers_
            if len(centers) < n_experts:
                raise UserError(f"expected {n_experts} different rows for as many centres, got fewer; set n_experts")
        else:
            given = np.asarray(self.centers, dtype=np.float64)
            if given.shape != (n_experts, data.X.shape[1]):
                expected = (n_experts, data.X.shape[1])
                raise UserError(f"expected centers of shape {expected}, got {given.shape}; give one row an expert")
            centers = (given - columns.center) / columns.scale
        return CentroidShares(center=columns.center, scale=columns.scale, centers=centers, softness=self.softness)


@dataclass(frozen=True, kw_only=True)
class OutlierShares(FittedDivision):
    """Expert 0 for inliers, expert 1 for outliers, as a fitted detector says."""

    detector: Any

    def shares(self, X: Array) -> Array:
        """Give each row to expert 0 or 1."""
        return np.eye(2)[(self.detector.predict(X) < 0).astype(int)]


class InlierOutlier(Division):
    """Two experts: one for the inliers, one for the outliers of X.

    Args:
        detector: any outlier detector of scikit-learn; None for an isolation forest. It is cloned.

    Example:
        >>> X = np.append(np.linspace(-1, 1, 99), 50.0)[:, None]
        >>> data = Data(X=X, y=X, sample_weight=np.ones(100))
        >>> InlierOutlier().fit(data, 2).shares(X)[[50, 99]]
        array([[1., 0.],
               [0., 1.]])
    """

    def __init__(self, detector: Any = None) -> None:
        self.detector = detector

    def fit(self, data: Data, n_experts: int, *, seed: int = 0) -> OutlierShares:
        """Fit the detector."""
        if n_experts != 2:
            raise UserError(f"expected 2 experts for inliers and outliers, got {n_experts}; set n_experts=2")
        if self.detector is not None and not (hasattr(self.detector, "fit") and hasattr(self.detector, "predict")):
            raise UserError(f"expected detector an outlier detector of scikit-learn, got {self.detector!r}; pass one")
        detector = IsolationForest(random_state=seed) if self.detector is None else clone(self.detector)
        weighted = has_fit_parameter(detector, "sample_weight")
        detector.fit(data.X, **({"sample_weight": data.sample_weight} if weighted else {}))
        return OutlierShares(detector=detector)


@dataclass(frozen=True, kw_only=True)
class LabelShares(FittedDivision):
    """One expert for each value of a column."""

    column: int
    values: NDArray[np.float64]

    def shares(self, X: Array) -> Array:
        """Give each row to the expert of its label; raises UserError for a label that was not in the training data."""
        labels = X[:, self.column]
        unknown = ~np.isin(labels, self.values)
        if unknown.any():
            raise UserError(
                f"expected labels {self.values.tolist()} in column {self.column}, got {labels[unknown][0]:g}; "
                "fit with rows of every label"
            )
        return np.eye(len(self.values))[np.searchsorted(self.values, labels)]


class LabelColumn(Division):
    """The division is given by a column of X that holds one value for each expert, in the order of these values.

    Args:
        column: its number or name.

    Example:
        >>> data = Data(X=np.array([[0.0, 10.0], [0.0, 20.0]]), y=np.zeros((2, 1)), sample_weight=np.ones(2))
        >>> LabelColumn(1).fit(data, 2).shares(data.X)
        array([[1., 0.],
               [0., 1.]])
    """

    def __init__(self, column: int | str) -> None:
        self.column = column

    def fit(self, data: Data, n_experts: int, *, seed: int = 0) -> LabelShares:  # noqa: ARG002  nothing is random
        """Collect the labels."""
        numbers = data.column_numbers((self.column,))
        assert numbers is not None
        values = np.unique(data.X[:, numbers[0]])
        if len(values) != n_experts:
            raise UserError(f"expected {n_experts} different labels, one an expert, got {len(values)}; set n_experts")
        return LabelShares(column=int(numbers[0]), values=values)


@dataclass(frozen=True, kw_only=True)
class EvenShares(FittedDivision):
    """The same share for every expert."""

    n_experts: int

    def shares(self, X: Array) -> Array:
        """Give even shares."""
        return np.full((len(X), self.n_experts), 1.0 / self.n_experts)


class ColumnGroups(Division):
    """The experts divide the columns and not the rows: expert k looks at the columns `groups[k]` alone.

    With `gate="fixed"` all experts have the same weight everywhere; another gate learns whom to ask where.

    Args:
        groups: one list of columns, by number or name, for each expert.

    Example:
        >>> data = Data(X=np.zeros((2, 3)), y=np.zeros((2, 1)), sample_weight=np.ones(2))
        >>> ColumnGroups([[0, 1], [2]]).fit(data, 2).shares(data.X)[0]
        array([0.5, 0.5])
    """

    def __init__(self, groups: Sequence[ColumnChoice]) -> None:
        self.groups = groups

    def fit(self, data: Data, n_experts: int, *, seed: int = 0) -> EvenShares:  # noqa: ARG002  nothing is random
        """Check the groups."""
        if len(self.groups) != n_experts:
            raise UserError(f"expected {n_experts} groups of columns, got {len(self.groups)}; give one for each expert")
        for group in self.groups:
            column_numbers(group, data.X.shape[1], data.feature_names)
        return EvenShares(n_experts=n_experts)


def given_shares(division: Any, n_samples: int, n_experts: int) -> Array:
    """Turn labels (n_samples,) from 0 or shares (n_samples, n_experts) into shares that sum to one.

    Example:
        >>> given_shares([1, 0], 2, 2)
        array([[0., 1.],
               [1., 0.]])
    """
    array = np.asarray(division)
    if array.shape == (n_samples, n_experts) and np.issubdtype(array.dtype, np.number):
        total = array.sum(axis=1, keepdims=True)
        if not (array >= 0).all() or not (np.isfinite(total) & (total > 0)).all():
            raise UserError("expected shares of at least 0 with a positive sum in every row; correct the division")
        return _telling(np.asarray(array / total, dtype=np.float64))
    if array.shape != (n_samples,) or not np.issubdtype(array.dtype, np.integer):
        raise UserError(
            f"expected a division of shape ({n_samples},) with whole numbers or ({n_samples}, {n_experts}), got "
            f"{array.shape} of {array.dtype}; pass one label or one row of shares for every row of X"
        )
    if array.min() < 0 or array.max() >= n_experts:
        raise UserError(f"expected labels from 0 to {n_experts - 1}, got {array.min()} to {array.max()}; set n_experts")
    return _telling(np.eye(n_experts)[array])


def _telling(shares: Array) -> Array:
    """Refuse shares that are the same for all rows: from them EM would keep all experts alike."""
    if shares.shape[1] > 1 and not np.ptp(shares, axis=0).any():
        raise UserError(
            f"expected a division of the rows, got {shares[0].tolist()} for all of them; leave division out"
        )
    return shares
