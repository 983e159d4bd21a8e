"""Small random problems and the question whether EM ever lost likelihood on one."""

from itertools import pairwise

import numpy as np

from mixtura.classical.data import Data
from mixtura.classical.em import Task, run, start
from mixtura.classical.initial import first_division

TARGETS = {
    "real": lambda rng, n: rng.standard_t(2, size=(n, 1)),
    "pair": lambda rng, n: rng.normal(size=(n, 2)) @ rng.normal(size=(2, 2)),
    "count": lambda rng, n: rng.poisson(np.exp(rng.normal(size=(n, 1)))).astype(float),
    "positive": lambda rng, n: rng.gamma(1.0, size=(n, 1)) + 1e-3,
}


def random_data(seed, targets="real", *, classes=3):
    """Rows without any structure: what EM makes of noise, few rows and odd scales; some rows occur twice."""
    rng = np.random.default_rng(seed)
    n_samples, n_features = int(rng.integers(6, 40)), int(rng.integers(1, 4))
    X = np.clip(rng.normal(size=(n_samples, n_features)), -2.5, 2.5)
    X[1] = X[0]
    if targets != "count":
        X *= 10.0 ** rng.uniform(-3, 3, size=n_features)
    weight = rng.uniform(0.1, 3.0, size=n_samples)
    if targets == "label":
        return Data(X=X, y=rng.integers(0, classes, n_samples), sample_weight=weight, classes=np.arange(classes))
    return Data(X=X, y=TARGETS[targets](rng, n_samples), sample_weight=weight)


def falls(seed, family, gate, *, targets="real", iterations=8, n_experts=None):
    """Run EM on a random problem and list the relative falls of its objective above 1e-9, at each temperature."""
    data = random_data(seed, targets)
    n_experts = n_experts or 1 + seed % 4
    task = Task(
        gate=gate.bind(data, n_experts),
        experts=family.bind(data, n_experts),
        sample_weight=data.sample_weight,
        n_experts=n_experts,
        tol=0.0,
        max_iter=iterations,
        temperature=1.5 if seed % 5 == 0 else 1.0,
        reseed=False,
    )
    first = first_division(data, n_experts, restart=seed, seed=seed)
    steps = run(task, start(data, first, temperature=task.temperature), iterations=iterations).steps
    assert len(steps) > 1
    assert all(np.isfinite(step.objective) for step in steps)
    pairs = [(a, b) for a, b in pairwise(steps) if a.temperature == b.temperature]
    lost = [(a.objective - b.objective) / max(abs(a.objective), 1.0) for a, b in pairs]
    return [loss for loss in lost if loss > 1e-9]
