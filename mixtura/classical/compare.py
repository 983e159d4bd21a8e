"""Two mixtures that differ only in the numbers of their experts are the same: bring them into one order."""

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from mixtura.classical.columns import Array
from mixtura.errors import UserError


def match_experts(shares: Array, reference: Array) -> NDArray[np.intp]:
    """Give the order of the experts of `shares` that agrees best with `reference`: `shares[:, order]`.

    Args:
        shares: responsibilities or gate probabilities of one model, (n_samples, n_experts).
        reference: those of the other model at the same rows, with as many experts.

    Example:
        >>> a = np.array([[0.9, 0.1], [0.2, 0.8]])
        >>> match_experts(a[:, ::-1], a)
        array([1, 0])
    """
    if shares.shape != reference.shape:
        raise UserError(f"expected shares of one shape, got {shares.shape} and {reference.shape}; use the same rows")
    _, order = linear_sum_assignment(reference.T @ shares, maximize=True)
    return np.asarray(order)


def agreement(shares: Array, reference: Array) -> float:
    """Give the share of rows whose most responsible expert is the same, after matching; 1 is the same division.

    Example:
        >>> a = np.array([[0.9, 0.1], [0.2, 0.8]])
        >>> agreement(a[:, ::-1], a)
        1.0
    """
    matched = shares[:, match_experts(shares, reference)]
    return float((matched.argmax(axis=1) == reference.argmax(axis=1)).mean())
