"""Hierarchical regression: recovery of generated trees, weights, settings, saving."""

import pickle

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mixtura.classical import HMERegressor, MoERegressor, Tree
from tests.classical.hierarchy.samples import four_lines


def test_a_generated_tree_is_recovered():
    X, y = four_lines(2000)
    model = HMERegressor(2, random_state=0).fit(X, y)
    order = np.argsort(model.gate_proba(np.array([[-0.75], [-0.25], [0.25], [0.75]])).argmax(axis=1))
    assert sorted(order) == [0, 1, 2, 3]
    where = model.gate_proba(np.array([[-0.75], [-0.25], [0.25], [0.75]])).argmax(axis=1)
    np.testing.assert_allclose(model.experts_.coef[where, 0, 0], [-1, 1, -1, 1], atol=0.05)
    np.testing.assert_allclose(model.experts_.intercept[where, 0], [-0.5, 0.5, 0.5, -0.5], atol=0.05)
    np.testing.assert_allclose(np.sqrt(model.experts_.covariance[:, 0, 0]), 0.05, rtol=0.15)
    assert model.converged_


@pytest.mark.parametrize("gate", ["softmax", "least_squares"])
def test_a_weight_of_two_is_a_row_that_occurs_twice(gate):
    X, y = four_lines(120)
    weight = np.random.default_rng(0).integers(0, 4, size=120)
    settings = {"depth": 2, "gate": gate, "n_init": 2, "max_iter": 40, "tol": 1e-3, "random_state": 0}
    weighted = HMERegressor(**settings).fit(X, y, sample_weight=weight)
    repeated = HMERegressor(**settings).fit(np.repeat(X, weight, axis=0), np.repeat(y, weight))
    np.testing.assert_allclose(weighted.predict(X), repeated.predict(X), atol=1e-6)
    assert weighted.log_likelihood_ == pytest.approx(repeated.log_likelihood_, rel=1e-7)


def test_annealing_ends_at_temperature_one():
    X, y = four_lines(300)
    model = HMERegressor(2, temperature=1.5, n_init=1, random_state=0).fit(X, y)
    assert model.history_[0].temperature == 1.5
    assert model.history_[-1].temperature == 1.0
    assert model.score(X, y) > 0.8


def test_saved_cloned_and_searched():
    X, y = four_lines(200)
    model = HMERegressor(tree=[[None, None], None], n_init=1, tol=1e-3, random_state=0).fit(X, y)
    loaded = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(loaded.predict(X), model.predict(X))
    assert loaded.tree_ == model.tree_ == Tree.of([[None, None], None])
    assert clone(model).get_params() == model.get_params()
    search = GridSearchCV(
        make_pipeline(StandardScaler(), HMERegressor(n_init=1, tol=1e-3, random_state=0)),
        {"hmeregressor__depth": [0, 2]},
        cv=3,
    )
    assert search.fit(X, y).best_params_ == {"hmeregressor__depth": 2}


def test_a_warm_start_goes_on_with_the_grown_tree():
    X, y = four_lines(400)
    model = HMERegressor(0, max_leaves=4, random_state=0).fit(X, y)
    reached = model.objective_
    model.set_params(warm_start=True, max_leaves=None).fit(X, y)
    assert len(model.tree_.leaves) == 4
    assert model.objective_ >= reached - 1e-6 * abs(reached)


def test_it_is_a_mixture_whose_predictions_can_be_asked_everything():
    X, y = four_lines(400)
    model = HMERegressor(2, n_init=1, random_state=0).fit(X, y)
    assert isinstance(model, MoERegressor)
    low, middle, high = model.predict_quantiles(X[:5]).T
    assert (low < middle).all()
    assert (middle < high).all()
    mean, spread = model.predict(X[:5], return_std=True)
    np.testing.assert_allclose(spread**2, model.uncertainty(X[:5]).total)
    alone = HMERegressor(2, n_init=1, random_state=0, pooling="highest").fit(X, y)
    best = alone.gate_proba(X).argmax(axis=1)
    np.testing.assert_allclose(alone.predict(X), alone.expert_predict(X)[np.arange(400), best])
    assert mean.shape == (5,)
