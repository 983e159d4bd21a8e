"""Hierarchical classification: problems that one expert cannot do, labels, weights of classes."""

import numpy as np
import pytest

from mixtura.classical import HMEClassifier
from tests.classical.hierarchy.samples import checkers


def test_a_tree_learns_what_one_expert_cannot():
    X, y = checkers()
    X_test, y_test = checkers(seed=1)
    tree = HMEClassifier(2, random_state=0, tol=1e-4).fit(X, y)
    alone = HMEClassifier(0, random_state=0).fit(X, y)
    assert tree.score(X_test, y_test) > 0.95
    assert alone.score(X_test, y_test) < 0.65
    assert tree.classes_.tolist() == ["other", "same"]
    np.testing.assert_allclose(tree.predict_proba(X_test).sum(axis=1), 1.0)


def test_weights_of_classes_are_weights_of_rows():
    X, y = checkers(150)
    settings = {"depth": 1, "n_init": 1, "tol": 1e-3, "random_state": 0}
    by_class = HMEClassifier(class_weight={"same": 3.0, "other": 1.0}, **settings).fit(X, y)
    by_row = HMEClassifier(**settings).fit(X, y, sample_weight=np.where(y == "same", 3.0, 1.0))
    np.testing.assert_allclose(by_class.predict_proba(X), by_row.predict_proba(X))


@pytest.mark.parametrize("pooling", ["weighted", "highest", "vote"])
def test_one_class_is_certain(pooling):
    X, _ = checkers(30)
    model = HMEClassifier(1, n_init=1, pooling=pooling, random_state=0).fit(X, np.full(30, 7))
    np.testing.assert_array_equal(model.predict(X), 7)
    assert model.partial_fit(X, np.full(30, 7)).score(X, np.full(30, 7)) == 1.0
