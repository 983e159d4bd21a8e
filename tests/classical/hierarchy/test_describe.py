"""Trees in words and numbers, against figures computed by hand."""

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LinearRegression

from mixtura.classical import HMEClassifier, HMERegressor
from mixtura.classical.hierarchy.describe import SoftTree
from tests.classical.hierarchy.samples import checkers, four_lines


@pytest.fixture(scope="module")
def fitted():
    X, y = four_lines()
    frame = pd.DataFrame(X, columns=["angle"])
    return HMERegressor(2, n_init=2, random_state=0).fit(frame, y), frame, y


def test_shares_and_histograms_are_those_of_the_posterior(fitted):
    model, X, y = fitted
    tree = model.to_tree(X, y)
    share = model.responsibilities(X, y)
    assert isinstance(tree, SoftTree)
    assert [node.children for node in tree.nodes] == [(1, 4), (2, 3), (), (), (5, 6), (), ()]
    np.testing.assert_allclose([node.share for node in tree.nodes if node.is_leaf], share.mean(axis=0))
    left = np.minimum(share[:, :2].sum(axis=1), 1.0)
    assert tree.nodes[1].share == pytest.approx(left.mean())
    counts = np.histogram(left, bins=10, range=(0, 1))[0] / len(X)
    np.testing.assert_allclose(tree.nodes[1].histogram, counts)


def test_deviances_are_relative_errors_of_the_cut_tree(fitted):
    model, X, y = fitted
    tree = model.to_tree(X, y)
    line = LinearRegression().fit(X, y)
    assert tree.nodes[0].deviance == pytest.approx(((y - line.predict(X)) ** 2).mean() / y.var())
    assert tree.nodes[0].below == pytest.approx(((y - model.predict(X)) ** 2).mean() / y.var())
    share = model.responsibilities(X, y)[:, :2].sum(axis=1)
    left = LinearRegression().fit(X, y, sample_weight=share)
    expected = np.average((y - left.predict(X)) ** 2, weights=share) / y.var()
    assert tree.nodes[1].deviance == pytest.approx(expected)


def test_words_name_the_columns_and_numbers(fitted):
    model, X, y = fitted
    lines = model.export_text().splitlines()
    assert len(lines) == 7
    assert lines[0].startswith("gate 0: first child with log-odds ")
    assert lines[2].startswith("|   |   leaf 0: y = ")
    assert all("angle" in line for line in lines)
    assert "share 1.00, deviance 1, below 0.1" in model.export_text(X, y)
    assert model.to_tree(X).nodes[0].deviance is None
    assert model.to_tree(X).nodes[1].share == pytest.approx(model.gate_proba(X)[:, :2].sum(axis=1).mean())


def test_classifiers_measure_nats():
    X, y = checkers(200)
    model = HMEClassifier(tree=[None, None, None], n_init=1, max_iter=100, tol=1e-3, random_state=0).fit(X, y)
    tree = model.to_tree(X, y)
    proba = model.predict_proba(X)[np.arange(200), np.searchsorted(model.classes_, y)]
    assert tree.nodes[0].below == pytest.approx(-np.log(proba).mean())
    assert tree.nodes[0].text.startswith("scores ")
    assert tree.nodes[1].text == "expert 0 of LogisticExperts"


def test_other_gates_and_mixed_experts_are_named():
    X, y = four_lines(200)
    model = HMERegressor(1, gate="polynomial", expert=["linear", "polynomial"], n_init=1, tol=1e-3, random_state=0)
    tree = model.fit(X, y).to_tree(X, y)
    assert tree.nodes[0].text == "SoftmaxFitted on features of X"
    assert tree.nodes[1].text == "expert 0 of MixedExperts"
    assert tree.nodes[0].deviance is None
    assert tree.nodes[0].below is not None
