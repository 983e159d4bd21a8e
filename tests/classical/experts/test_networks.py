"""Experts that are no tables' models: a convolutional network on pictures, Markov chains on sequences."""

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.datasets import load_digits

from mixtura.classical import EstimatorExpert, MoEClassifier


class Convolution(ClassifierMixin, BaseEstimator):
    """A small network with the API that skorch gives to one: float32 pictures inside, rows outside, no weights."""

    def __init__(self, steps=40):
        self.steps = steps

    def fit(self, X, y):
        self.classes_, labels = np.unique(y, return_inverse=True)
        torch.manual_seed(0)
        self.net_ = torch.nn.Sequential(
            torch.nn.Conv2d(1, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(288, len(self.classes_))
        )
        optimizer = torch.optim.Adam(self.net_.parameters(), lr=0.02)
        for _ in range(self.steps):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(self.net_(self._pictures(X)), torch.tensor(labels)).backward()
            optimizer.step()
        return self

    def predict_proba(self, X):
        with torch.no_grad():
            return self.net_(self._pictures(X)).softmax(dim=1).numpy()

    def predict(self, X):
        return self.classes_[self.predict_proba(X).argmax(axis=1)]

    def _pictures(self, X):
        return torch.tensor(np.asarray(X, dtype=np.float32).reshape(-1, 1, 8, 8) / 16)


class Chains(ClassifierMixin, BaseEstimator):
    """One Markov chain for each class on rows that are sequences of two symbols: a classifier by likelihood."""

    def fit(self, X, y):
        self.classes_ = np.unique(y)
        self.log_prior_ = np.log([np.mean(y == label) for label in self.classes_])
        counts = np.stack([self._moves(X[y == label]).sum(axis=0) + 1 for label in self.classes_])
        self.log_move_ = np.log(counts / counts.sum(axis=2, keepdims=True))
        return self

    def predict_proba(self, X):
        score = self.log_prior_ + np.einsum("nij,cij->nc", self._moves(X), self.log_move_)
        score = np.exp(score - score.max(axis=1, keepdims=True))
        return score / score.sum(axis=1, keepdims=True)

    def predict(self, X):
        return self.classes_[self.predict_proba(X).argmax(axis=1)]

    def _moves(self, X):
        symbol = np.eye(2)[np.asarray(X).astype(int)]
        return np.einsum("nti,ntj->nij", symbol[:, :-1], symbol[:, 1:])


def test_convolutional_networks_are_experts_on_flattened_pictures():
    X, y = load_digits(return_X_y=True)
    keep = y < 4
    X, y = X[keep][:400], y[keep][:400]
    model = MoEClassifier(2, expert=Convolution(), gate="constant", n_init=1, max_iter=7, tol=10.0, random_state=0)
    assert model.fit(X[:300], y[:300]).score(X[300:], y[300:]) > 0.93
    assert isinstance(model.experts_.estimators[1], Convolution)


def sequences(n_samples, rng):
    """The first symbol says who is right: after a 0, class 1 alternates and class 0 stays; after a 1 it is reversed."""
    y = rng.integers(0, 2, n_samples)
    first = rng.integers(0, 2, n_samples)
    stay = np.where((y == 0) ^ (first == 1), 0.8, 0.2)
    rows = [first]
    for _ in range(19):
        rows.append(np.where(rng.uniform(size=n_samples) < stay, rows[-1], 1 - rows[-1]))
    return np.stack(rows, axis=1).astype(float), y


def test_markov_chains_are_experts_on_sequences():
    rng = np.random.default_rng(0)
    (X, y), (test_X, test_y) = sequences(600, rng), sequences(400, rng)
    alone = Chains().fit(X, y).score(test_X, test_y)
    expert = EstimatorExpert(Chains(), weighting="resample")
    model = MoEClassifier(2, expert=expert, n_init=4, random_state=0, tol=1e-4).fit(X, y)
    assert alone < 0.65
    assert model.score(test_X, test_y) > 0.95
