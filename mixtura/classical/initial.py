"""First divisions of the rows among the experts.

They are functions of the weighted set of rows: neither the order of the rows nor whether a row occurs twice or has
weight two changes them, so that weights equal repetition from the first iteration on.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans

from mixtura.classical.columns import Array, Columns
from mixtura.classical.data import Data, pick

SHARPNESS = 4.0
SPREAD = 0.9
FREQUENCIES = 8


def joint_columns(data: Data, *, targets: bool) -> Array:
    """Give the standardised columns of X, followed by the targets' (labels one-hot) if `targets`.

    Example:
        >>> joint_columns(Data(X=np.array([[0.0], [2.0]]), y=np.zeros((2, 1)), sample_weight=np.ones(2)), targets=False)
        array([[-1.],
               [ 1.]])
    """
    y = np.eye(data.n_classes)[data.y] if data.n_classes else data.y
    together = np.column_stack([data.X, y]) if targets else data.X
    columns = Columns.of(together, sample_weight=data.sample_weight)
    return columns.block(slice(0, data.n_samples))[:-1].T


def smooth_partition(points: Array, n_experts: int, rng: np.random.Generator) -> Array:
    """Divide space at random into soft regions: softmax of random waves, one sum of waves for each expert.

    Shapes: points (n_samples, n_columns), standardised -> (n_samples, n_experts), rows sum to one.
    """
    direction = rng.normal(size=(points.shape[1], FREQUENCIES)) / np.sqrt(points.shape[1])
    phase = rng.uniform(0, 2 * np.pi, size=FREQUENCIES)
    waves = np.cos(2.0 * points @ direction + phase)
    scores = SHARPNESS * waves @ rng.normal(size=(FREQUENCIES, n_experts))
    scores -= scores.max(axis=1, keepdims=True)
    share = np.exp(scores)
    normal: Array = share / share.sum(axis=1, keepdims=True)
    return normal


def clusters(points: Array, sample_weight: Array, *, n_experts: int, rng: np.random.Generator) -> Array:
    """Divide by k-means from random rows, softened; fewer different rows than experts leave some without a cluster.

    Shapes: points (n_samples, n_columns), standardised -> (n_samples, n_experts).
    """
    found = k_means(points, sample_weight, n_clusters=n_experts, rng=rng)
    return soften(np.eye(n_experts)[found.labels_])


def k_means(points: Array, sample_weight: Array, *, n_clusters: int, rng: np.random.Generator) -> KMeans:
    """Fit k-means from rows far from one another; of fewer different rows there are fewer clusters."""
    seeds = seed_rows(points, sample_weight, n_seeds=n_clusters, rng=rng)
    centers = np.unique(points[seeds], axis=0)
    return KMeans(len(centers), init=centers, n_init=1, max_iter=50).fit(points, sample_weight=sample_weight)


def soften(shares: Array) -> Array:
    """Take a little of every share and give it to all experts, so that EM can still move the row.

    Example:
        >>> soften(np.array([[0.0, 1.0]])).round(2)
        array([[0.05, 0.95]])
    """
    return SPREAD * shares + (1.0 - SPREAD) / shares.shape[1]


def seed_rows(points: Array, sample_weight: Array, *, n_seeds: int, rng: np.random.Generator) -> NDArray[np.intp]:
    """Draw rows far from one another (k-means++), each by its place in an order of the rows that their values give."""
    order = np.argsort(points @ rng.normal(size=points.shape[1]), kind="stable")
    mass, nearest = sample_weight[order].astype(float), np.full(len(points), np.inf)
    chosen: list[int] = []
    for _ in range(n_seeds):
        reached = np.cumsum(mass)
        if reached[-1] <= 0:  # fewer different rows than seeds
            reached = np.cumsum(sample_weight[order])
        place = min(int(np.searchsorted(reached, rng.uniform() * reached[-1], side="right")), len(order) - 1)
        chosen.append(int(order[place]))
        distance = ((points[order] - points[chosen[-1]]) ** 2).sum(axis=1)
        nearest = np.minimum(nearest, distance)
        mass = sample_weight[order] * nearest
    return np.array(chosen)


def first_division(
    data: Data, n_experts: int, *, restart: int, seed: int, columns: NDArray[np.intp] | None = None
) -> Array:
    """Give the division that a restart begins with, shape (n_samples, n_experts).

    Even restarts cluster the rows by the `columns` that the gate looks at (None: all of X), odd ones cut the space of
    these and y at random. For a gate that looks at nothing (no column) clusters in X mean nothing: it starts from
    random cuts of X and y only.
    """
    rng = np.random.default_rng(seed)
    if n_experts == 1:
        return np.ones((data.n_samples, 1))
    blind = columns is not None and not len(columns)
    seen = data if blind else replace(data, X=pick(data.X, columns))
    if restart % 2 == 0 and not blind:
        return clusters(joint_columns(seen, targets=False), data.sample_weight, n_experts=n_experts, rng=rng)
    return smooth_partition(joint_columns(seen, targets=True), n_experts, rng)
