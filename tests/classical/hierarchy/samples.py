"""Data drawn from known trees."""

import numpy as np

from mixtura.classical.data import Data
from mixtura.classical.em import run, start
from mixtura.classical.experts.gaussian import LinearExpert
from mixtura.classical.gates.softmax import SoftmaxGate
from mixtura.classical.hierarchy.divide import divide
from mixtura.classical.hierarchy.grow import Plan


def four_lines(n_samples=800, *, seed=0, noise=0.05):
    """The shape of a W: four lines under a tree of sharp gates at 0, -0.5 and 0.5."""
    rng = np.random.default_rng(seed)
    X = rng.uniform(-1, 1, size=(n_samples, 1))
    return X, np.abs(np.abs(X[:, 0]) - 0.5) + noise * rng.normal(size=n_samples)


def checkers(n_samples=600, *, seed=0):
    """Two classes on the four quarters of a square, as labels of text."""
    X = np.random.default_rng(seed).uniform(-1, 1, size=(n_samples, 2))
    return X, np.where(X[:, 0] * X[:, 1] > 0, "same", "other")


def plan_for(X, y, **settings):
    data = Data(X=X, y=y[:, None], sample_weight=np.ones(len(X)))
    return Plan(data=data, family=LinearExpert(), node=SoftmaxGate(), tol=1e-6, max_iter=200, seed=0, **settings)


def fitted_tree(plan, tree):
    begun = start(plan.data, divide(plan.data, tree, gate=plan.node, restart=0, seed=0))
    return run(plan.task(tree), begun, iterations=200)
