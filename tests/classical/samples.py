"""Data drawn from known mixtures."""

import numpy as np


def switching(n_samples=600, *, seed=0, noise=0.1):
    """Two lines, slope 2 left of zero and slope -3 right of it, under a soft gate with slope 8."""
    rng = np.random.default_rng(seed)
    X = rng.uniform(-1, 1, size=(n_samples, 1))
    right = rng.uniform(size=n_samples) < 1 / (1 + np.exp(-8 * X[:, 0]))
    y = np.where(right, 1 - 3 * X[:, 0], 1 + 2 * X[:, 0]) + noise * rng.normal(size=n_samples)
    return X, y, right.astype(int)


def log_linear(n_samples=1500, *, seed=0):
    """Means of two log-linear experts, exp(1 + x) right of zero and exp(2.5 - x) left of it, and who is who."""
    rng = np.random.default_rng(seed)
    X = rng.uniform(-2, 2, size=(n_samples, 1))
    right = X[:, 0] > 0
    return X, np.exp(np.where(right, 1 + X[:, 0], 2.5 - X[:, 0])), rng
