import pickle

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mixtura.classical import LinearExpert, MoERegressor, PoissonExpert, SoftmaxGate
from tests.classical.samples import switching


@pytest.fixture(scope="module")
def fitted():
    X, y, right = switching(1500)
    return MoERegressor(2, random_state=0).fit(X, y), X, y, right


def test_responsibilities_name_the_generating_expert(fitted):
    model, X, y, right = fitted
    found = model.responsibilities(X, y).argmax(axis=1)
    apart = np.abs(X[:, 0]) > 0.15  # nearer to zero both lines say the same
    assert max((found == right)[apart].mean(), (found != right)[apart].mean()) > 0.995


def test_the_mixture_beats_one_line(fitted):
    model, X, y, _ = fitted
    assert model.score(X, y) > MoERegressor(1).fit(X, y).score(X, y) + 0.3
    assert model.log_likelihood_ == pytest.approx(model.log_density(X, y).sum())


def test_the_prediction_is_the_gates_mean_of_the_experts(fitted):
    model, X, _, _ = fitted
    pooled = (model.gate_proba(X) * model.expert_predict(X)).sum(axis=1)
    np.testing.assert_allclose(model.predict(X), pooled)
    mean, std = model.predict(X, return_std=True)
    np.testing.assert_allclose(mean, pooled)
    np.testing.assert_allclose(std**2, model.uncertainty(X).total)


def test_highest_gate_asks_one_expert(fitted):
    model, X, y, _ = fitted
    highest = clone(model).set_params(pooling="highest").fit(X, y)
    best = highest.gate_proba(X).argmax(axis=1)
    np.testing.assert_allclose(highest.predict(X), highest.expert_predict(X)[np.arange(len(X)), best])
    np.testing.assert_allclose(highest.uncertainty(X).gate_entropy, 0.0)


def test_ninety_percent_bands_cover_ninety_percent(fitted):
    model, _, _, _ = fitted
    X, y, _ = switching(4000, seed=9)
    low, high = model.predict_quantiles(X, (0.05, 0.95)).T
    assert 0.88 < ((low < y) & (y < high)).mean() < 0.92


def test_where_the_gate_doubts_the_experts_differ_and_uncertainty_says_so():
    rng = np.random.default_rng(0)
    X = rng.uniform(-1, 1, size=(1000, 1))
    y = np.where(rng.uniform(size=1000) < 1 / (1 + np.exp(-8 * X[:, 0])), 3.0, -3.0) + 0.1 * rng.normal(size=1000)
    kinds = MoERegressor(2, random_state=0).fit(X, y).uncertainty([[0.0], [0.95]])
    assert kinds.between[0] == pytest.approx(9.0, rel=0.05)
    assert kinds.between[1] < 0.2
    np.testing.assert_allclose(kinds.noise, 0.01, rtol=0.3)
    assert kinds.gate_entropy[0] == pytest.approx(np.log(2), abs=0.02)


def test_samples_come_from_the_predictive_distribution(fitted):
    model, _, _, _ = fitted
    drawn = model.sample_y([[0.1], [-0.8]], 5000, random_state=0)
    assert drawn.shape == (2, 5000)
    mean, std = model.predict([[0.1], [-0.8]], return_std=True)
    np.testing.assert_allclose(drawn.mean(axis=1), mean, atol=0.05)
    np.testing.assert_allclose(drawn.std(axis=1), std, rtol=0.12)
    np.testing.assert_array_equal(drawn, model.sample_y([[0.1], [-0.8]], 5000, random_state=0))


def test_several_outputs_share_the_gate():
    X, y, _ = switching(800)
    both = np.column_stack([y, -2 * y])
    model = MoERegressor(2, random_state=0).fit(X, both)
    assert model.predict(X).shape == (800, 2)
    assert model.expert_predict(X).shape == (800, 2, 2)
    assert model.predict_quantiles(X[:5]).shape == (5, 3, 2)
    assert model.sample_y(X[:5], 7).shape == (5, 2, 7)
    assert model.score(X, both) > 0.85


def test_columns_of_a_data_frame_are_chosen_by_name():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {"x": rng.uniform(-2, 2, 500), "side": rng.uniform(-2, 2, 500), "log_days": rng.uniform(0, 2, 500)}
    )
    rate = np.exp(np.where(frame["side"] > 0, frame["x"], -frame["x"]) + frame["log_days"])
    expert = PoissonExpert(columns=["x"], offset="log_days")
    model = MoERegressor(2, expert=expert, gate=SoftmaxGate(columns=["side"]), random_state=0).fit(
        frame, rng.poisson(rate)
    )
    np.testing.assert_allclose(np.sort(model.experts_.coef.ravel()), [-1, 1], atol=0.1)
    assert list(model.feature_names_in_) == ["x", "side", "log_days"]


def test_pipelines_searches_clones_and_pickles():
    X, y, _ = switching(200)
    scaler = StandardScaler().set_output(transform="pandas")
    pipeline = make_pipeline(scaler, MoERegressor(expert=LinearExpert(), random_state=0, n_init=1))
    grid = {"moeregressor__n_experts": [1, 2], "moeregressor__expert__alpha": [0.0, 1e4]}
    search = GridSearchCV(pipeline, grid, cv=3).fit(X, y)
    assert search.best_params_ == {"moeregressor__n_experts": 2, "moeregressor__expert__alpha": 0.0}
    again = pickle.loads(pickle.dumps(search.best_estimator_))
    np.testing.assert_array_equal(again.predict(X), search.predict(X))
    assert clone(pipeline).get_params()["moeregressor__expert__degree"] == 1


def test_a_warm_start_goes_on():
    X, y, _ = switching(400)
    short = MoERegressor(2, random_state=0, n_init=1, max_iter=3, warm_start=True)
    with pytest.warns(UserWarning, match="EM did not converge in 3 iterations"):
        short.fit(X, y)
    before = short.objective_
    short.set_params(max_iter=200).fit(X, y)
    assert short.history_[0].objective >= before - 1e-9 * abs(before)
    whole = MoERegressor(2, random_state=0, n_init=1, max_iter=203).fit(X, y)
    assert short.objective_ == pytest.approx(whole.objective_, rel=1e-4)
    with pytest.raises(ValueError, match="expected n_experts=2 to go on from the last fit, got 3"):
        short.set_params(n_experts=3).fit(X, y)


def test_weights_equal_repetition():
    X, y, _ = switching(120)
    counts = np.random.default_rng(0).integers(0, 4, size=120)
    weighted = MoERegressor(3, random_state=0).fit(X, y, sample_weight=counts)
    repeated = MoERegressor(3, random_state=0).fit(X.repeat(counts, axis=0), y.repeat(counts))
    np.testing.assert_allclose(weighted.predict(X), repeated.predict(X), atol=1e-5)
    assert weighted.log_likelihood_ == pytest.approx(repeated.log_likelihood_)
    kept = counts > 0
    assert weighted.bic(X[kept], y[kept], sample_weight=counts[kept]) == pytest.approx(
        repeated.bic(X.repeat(counts, axis=0), y.repeat(counts))
    )


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_annealing_escapes_poor_divisions():
    rng = np.random.default_rng(1)
    X = rng.uniform(0, 6, size=(400, 1))
    piece = X[:, 0].astype(int)
    slope, constant = 5 * rng.normal(size=6), 5 * rng.normal(size=6)
    y = constant[piece] + slope[piece] * (X[:, 0] - piece) + 0.2 * rng.normal(size=400)

    def reached(temperature):
        found = []
        for seed in range(6):
            labels = np.random.default_rng(seed).integers(0, 6, size=400)
            model = MoERegressor(6, division=labels, temperature=temperature, max_iter=600).fit(X, y)
            found.append(model.objective_)
        return np.sort(found)

    assert np.median(reached(3.0)) > np.median(reached(1.0)) + 50
