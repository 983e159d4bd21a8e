"""Experts from nothing: as many M-steps as families that iterate need."""

import numpy as np

from mixtura.classical.columns import Array
from mixtura.classical.experts.base import ExpertTrainer, FittedExperts

COLD_STEPS = 20


def settled(trainer: ExpertTrainer, weights: Array) -> FittedExperts:
    """Fit experts to weights from nothing, with as many M-steps as it takes families that iterate."""
    fitted = trainer.fit(weights, None)
    value = -np.inf
    for _ in range(COLD_STEPS):
        fitted = trainer.fit(weights, fitted)
        before, value = value, float(np.vdot(weights, np.maximum(trainer.log_density(fitted), -1e300))) - fitted.penalty
        if value - before <= 1e-6 * float(weights.sum()):
            break
    return fitted
