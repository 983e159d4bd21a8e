import numpy as np
import pytest
from sklearn.covariance import EllipticEnvelope

from mixtura.classical import Centroids, ColumnGroups, InlierOutlier, LabelColumn, MoERegressor
from mixtura.classical.data import Data
from mixtura.classical.division import given_shares
from mixtura.errors import UserError
from tests.classical.samples import switching


def data(X):
    return Data(X=np.asarray(X, dtype=float), y=np.zeros((len(X), 1)), sample_weight=np.ones(len(X)))


def test_found_centroids_are_those_of_the_clusters():
    X = np.concatenate([np.linspace(0, 1, 20), np.linspace(9, 10, 20), np.linspace(19, 20, 20)])[:, None]
    shares = Centroids().fit(data(X), 3).shares(X)
    labels = shares.argmax(axis=1).reshape(3, 20)
    assert (labels == labels[:, [0]]).all()
    assert len(set(labels[:, 0])) == 3


def test_soft_centroids_fall_with_the_distance():
    X = np.array([[-1.0], [1.0]])
    shares = Centroids([[-1.0], [1.0]], softness=1.0).fit(data(X), 2).shares(np.array([[-1.0], [0.0]]))
    np.testing.assert_allclose(shares, [[1 / (1 + np.exp(-2)), 1 / (1 + np.exp(2))], [0.5, 0.5]])


def test_outliers_get_their_own_expert():
    rng = np.random.default_rng(0)
    X = np.concatenate([rng.normal(size=(95, 2)), rng.normal(size=(5, 2)) + 20])
    division = InlierOutlier(EllipticEnvelope(contamination=0.05, random_state=0))
    assert np.array_equal(division.fit(data(X), 2).shares(X).argmax(axis=1), np.repeat([0, 1], [95, 5]))
    y = np.where(np.arange(100) < 95, X[:, 0], 50.0) + 0.1 * rng.normal(size=100)
    model = MoERegressor(2, gate="fixed", division=division).fit(X, y)
    np.testing.assert_allclose(model.experts_.coef[0, 0], [1.0, 0.0], atol=0.05)


def test_a_label_column_divides_by_its_values():
    X, y, right = switching(200)
    labelled = np.column_stack([X, 10 * right + 10])
    model = MoERegressor(2, expert="linear", gate="fixed", division=LabelColumn(1)).fit(labelled, y)
    assert np.array_equal(model.gate_proba(labelled).argmax(axis=1), right)
    with pytest.raises(UserError, match=r"expected labels \[10.0, 20.0\] in column 1, got 30"):
        model.predict([[0.0, 30.0]])


@pytest.mark.parametrize("given", ["labels", "shares"])
def test_given_labels_are_where_em_begins(given):
    X, y, right = switching(300)
    division = 1 - right if given == "labels" else np.eye(2)[1 - right]
    model = MoERegressor(2, division=division, random_state=0).fit(X, y)
    assert model.experts_.coef[0, 0, 0] == pytest.approx(-3, abs=0.1)
    assert len(model.restart_objectives_) == 1


def test_labels_of_rows_without_weight_are_left_out():
    X, y, right = switching(300)
    weight = (np.arange(300) % 3 > 0).astype(float)
    model = MoERegressor(2, division=right, random_state=0).fit(X, y, sample_weight=weight)
    assert model.experts_.coef[1, 0, 0] == pytest.approx(-3, abs=0.1)


@pytest.mark.parametrize(
    ("division", "message"),
    [
        (Centroids([[0.0], [1.0], [2.0]]), r"expected centers of shape \(2, 1\), got \(3, 1\)"),
        (Centroids(softness=-1.0), "expected softness"),
        (LabelColumn(0), "expected 2 different labels, one an expert, got 20"),
        (ColumnGroups([[0]]), "expected 2 groups of columns, got 1"),
        (ColumnGroups([[0], [4]]), "expected a column number below 1, got 4"),
    ],
)
def test_divisions_that_do_not_fit_are_refused(division, message):
    X, y, _ = switching(20)
    with pytest.raises(UserError, match=message):
        MoERegressor(2, gate="fixed", division=division).fit(X, y)


def test_three_experts_cannot_be_inliers_and_outliers():
    with pytest.raises(UserError, match="expected 2 experts for inliers and outliers, got 3"):
        MoERegressor(3, division=InlierOutlier()).fit([[0.0], [1.0], [2.0]], [0, 1, 2])


@pytest.mark.parametrize(
    ("division", "message"),
    [
        ([0, 1], r"expected a division of shape \(3,\)"),
        ([0.5, 0.5, 1.0], "whole numbers"),
        ([0, 1, 2], "expected labels from 0 to 1, got 0 to 2"),
        ([[1.0, -1.0]] * 3, "expected shares of at least 0"),
        ([[0.0, 0.0]] * 3, "positive sum"),
    ],
)
def test_given_divisions_are_checked(division, message):
    with pytest.raises(UserError, match=message):
        given_shares(division, 3, 2)


def test_given_shares_are_normalised():
    np.testing.assert_allclose(given_shares([[1, 3], [2, 2]], 2, 2), [[0.25, 0.75], [0.5, 0.5]])


def test_fewer_different_rows_than_centres_is_refused():
    X = np.repeat([[0.0], [1.0]], 10, axis=0)
    with pytest.raises(UserError, match="expected 3 different rows for as many centres, got fewer"):
        MoERegressor(3, gate="fixed", division=Centroids()).fit(X, X[:, 0])
