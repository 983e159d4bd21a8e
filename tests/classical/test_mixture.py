"""Bad input and bad settings: one clear line, or a documented way to deal with them."""

import numpy as np
import pytest
from scipy import sparse

from mixtura.classical import (
    ColumnGroups,
    HMEClassifier,
    HMERegressor,
    InlierOutlier,
    LinearExpert,
    MoEClassifier,
    MoERegressor,
    PoissonExpert,
)
from mixtura.errors import UserError
from tests.classical.samples import switching

BOTH = [MoERegressor, MoEClassifier]
ALL = [*BOTH, HMERegressor, HMEClassifier]


def data(n_samples=40):
    X = switching(n_samples)[0]
    return X, (X[:, 0] > 0).astype(int)


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_infinity_are_refused(kind, bad):
    X, y = data()
    X[3] = bad
    with pytest.raises(ValueError, match=r"NaN|infinity"):
        kind().fit(X, y)


@pytest.mark.parametrize("kind", ALL)
def test_sparse_and_words_are_refused(kind):
    X, y = data()
    with pytest.raises(TypeError, match=r"[Ss]parse"):
        kind().fit(sparse.csr_matrix(X), y)
    with pytest.raises(ValueError, match="could not convert string to float"):
        kind().fit([["a"], ["b"]], [0, 1])


def test_continuous_labels_and_words_as_numbers_are_refused():
    X, _ = data()
    with pytest.raises(ValueError, match="Unknown label type"):
        MoEClassifier().fit(X, X[:, 0])
    with pytest.raises(ValueError, match="could not convert string to float"):
        MoERegressor().fit(X, ["a"] * 40)


@pytest.mark.parametrize("kind", BOTH)
def test_more_experts_than_rows_is_refused(kind):
    X, y = data(4)
    with pytest.raises(UserError, match=r"expected at least one sample per expert, got n_samples = 4 .* n_experts = 5"):
        kind(5).fit(X, y)
    with pytest.raises(UserError, match="got n_samples = 2 with weight"):
        kind(3).fit(X, y, sample_weight=[1.0, 0.0, 0.0, 2.0])


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.filterwarnings("ignore:.*floor")
def test_constant_columns_and_duplicate_rows_change_nothing(kind):
    X, y = data()
    y = y if issubclass(kind, MoEClassifier) else y + X[:, 0] + 0.1 * np.sin(40 * X[:, 0])
    plain = kind(2, random_state=0, n_init=2, tol=1e-4).fit(X, y)
    constant = kind(2, random_state=0, n_init=2, tol=1e-4).fit(np.column_stack([X, np.full(40, 1e6)]), y)
    assert np.isfinite(constant.log_likelihood_)
    np.testing.assert_allclose(constant.score(np.column_stack([X, np.full(40, 1e6)]), y), plain.score(X, y), atol=0.05)
    doubled = kind(2, random_state=0, n_init=2, tol=1e-4).fit(np.repeat(X, 2, axis=0), np.repeat(y, 2))
    assert np.isfinite(doubled.predict(X).astype(float)).all()


@pytest.mark.parametrize("kind", BOTH)
def test_all_rows_the_same_is_no_error(kind):
    X, y = np.ones((12, 2)), np.arange(12) % 2
    X[:, 1] = -3.0
    model = kind(2, random_state=0, n_init=2, division=np.arange(12) // 6).fit(X, y)
    proba = model.predict_proba(X)[:, 1] if kind is MoEClassifier else model.predict(X)
    np.testing.assert_allclose(proba, 0.5, atol=1e-6)


def test_a_constant_target_is_floored_with_a_warning():
    X, _ = data()
    with pytest.warns(UserWarning, match="floor"):
        model = MoERegressor(2, random_state=0).fit(X, np.full(40, 7.0))
    np.testing.assert_allclose(model.predict(X), 7.0, atol=1e-6)
    assert np.isfinite(model.log_likelihood_)


@pytest.mark.filterwarnings("ignore:.*floor")
def test_fewer_rows_than_parameters_is_no_error():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(8, 30))
    assert np.isfinite(MoERegressor(3, random_state=0).fit(X, rng.normal(size=8)).predict(X)).all()
    labels = MoEClassifier(3, random_state=0, n_init=1, tol=1e-3).fit(X, np.arange(8) % 3).predict(X)
    assert np.array_equal(labels, np.arange(8) % 3)


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_init": 0}, "expected n_init a whole number of at least 1, got 0"),
        ({"max_iter": 2.5}, "expected max_iter a whole number"),
        ({"tol": -1.0}, "expected tol a finite number of at least 0, got -1.0"),
        ({"temperature": 0.5}, "expected temperature a finite number of at least 1, got 0.5"),
        ({"temperature": 50.0, "max_iter": 10}, "expected the temperature to reach 1 in max_iter = 10 iterations"),
        ({"n_experts": 0}, "expected n_experts a whole number of at least 1"),
        ({"gate": "hard"}, "expected gate one of"),
        ({"pooling": "median"}, "expected pooling one of"),
        ({"division": [0, 1]}, r"expected a division of shape \(40,\)"),
        ({"division": [0] * 40, "n_experts": 2}, r"expected a division of the rows, got \[1.0, 0.0\] for all of them"),
        ({"division": [[1.0, 1.0]] * 40}, r"expected a division of the rows, got \[0.5, 0.5\]"),
        ({"division": ColumnGroups([[0]]), "n_experts": 2}, "expected 2 groups of columns, got 1"),
        ({"division": InlierOutlier("forest")}, "expected detector an outlier detector"),
        ({"expert": []}, "expected at least one expert in the list"),
        ({"warm_start": "no"}, "expected warm_start True or False, got 'no'"),
        ({"verbose": -1}, "expected verbose a whole number of at least 0, got -1"),
    ],
)
def test_bad_settings_are_one_line(kind, settings, message):
    X, y = data()
    with pytest.raises(UserError, match=message) as caught:
        kind(**settings).fit(X, y)
    assert "\n" not in str(caught.value)


def test_targets_must_fit_the_rows():
    X, y = data()
    model = MoERegressor(1).fit(X, y)
    with pytest.raises(UserError, match="expected as many targets as rows, got 3 for 40 rows"):
        model.log_density(X, y[:3])
    with pytest.raises(UserError, match="expected finite targets"):
        model.log_density(X[:2], [0.0, np.nan])


def test_reseeding_is_a_warning():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 1))
    y = np.where(rng.uniform(size=200) < 0.5, 3.0, -3.0) + 0.1 * rng.normal(size=200)
    shares = np.column_stack([np.ones(200), np.zeros(200)])

    def start(data, _, **options):
        from mixtura.classical import em

        return em.start(data, shares, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mixtura.classical.mixture.start", start)
        with pytest.warns(UserWarning, match="experts 1 explained nothing and were re-seeded"):
            model = MoERegressor(2, gate="constant", division=np.arange(200) % 2).fit(X, y)
    assert model.log_likelihood_ > MoERegressor(1).fit(X, y).log_likelihood_ + 100


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("scale", [1e149, 1e-149])
@pytest.mark.filterwarnings("ignore:.*floor")
def test_the_units_of_X_change_no_prediction(kind, scale):
    X, y = data()
    plain, scaled = (kind(2, random_state=0, n_init=1, tol=1e-4).fit(X * unit, y) for unit in (1.0, scale))
    np.testing.assert_allclose(scaled.log_likelihood_, plain.log_likelihood_, rtol=1e-6)
    np.testing.assert_allclose(scaled.predict(X * scale), plain.predict(X), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", [MoERegressor, HMERegressor])
@pytest.mark.parametrize("expert", ["linear", "student_t", LinearExpert(covariance="full")])
@pytest.mark.parametrize("scale", [1e149, 1e-149])
def test_the_units_of_y_change_nothing_but_the_units(kind, expert, scale):
    X, y, _ = switching(40)
    settings = {"expert": expert, "gate": "constant", "random_state": 0, "n_init": 1, "tol": 1e-4}
    plain, scaled = (kind(2 if kind is MoERegressor else 1, **settings).fit(X, y * unit) for unit in (1.0, scale))
    np.testing.assert_allclose(scaled.predict(X) / scale, plain.predict(X), rtol=1e-6)
    std = scaled.predict(X, return_std=True)[1]
    np.testing.assert_allclose(std / scale, plain.predict(X, return_std=True)[1], rtol=1e-6)


@pytest.mark.filterwarnings("ignore:.*floor")
@pytest.mark.parametrize("kind", ALL)
def test_what_no_square_can_hold_is_refused_and_what_is_too_small_to_vary_is_constant(kind):
    X, y = data()
    with pytest.raises(UserError, match=r"expected X at most 1e\+150 in size, got 1e\+200; rescale it"):
        kind().fit(np.where(X > 0, 1e200, X), y)
    model = kind(2, random_state=0, n_init=1, tol=1e-4).fit(np.column_stack([X, 1e-300 * X[:, 0]]), y)
    plain = kind(2, random_state=0, n_init=1, tol=1e-4).fit(X, y)
    np.testing.assert_allclose(model.log_likelihood_, plain.log_likelihood_, rtol=1e-6)
    with pytest.raises(UserError, match="expected X at most"):
        plain.predict(1e300 * X)
    if kind in (MoERegressor, HMERegressor):
        with pytest.raises(UserError, match="expected y at most"):
            kind().fit(X, 1e200 * y)


def test_products_of_columns_that_overflow_are_refused():
    X, y = data()
    with pytest.raises(UserError, match=r"expected products of 3 columns at most 1e.150 in size, got inf"):
        MoERegressor(expert=LinearExpert(degree=3)).fit(1e140 * X, y)


@pytest.mark.parametrize("kind", [MoEClassifier, HMEClassifier])
def test_labels_and_class_weights_that_mean_nothing_are_refused(kind):
    X, y = data()
    with pytest.raises(UserError, match="expected labels of one kind, got int, str together"):
        kind().fit(X, np.array(["a", 1] * 20, dtype=object))
    for weight in (-1.0, np.nan):
        with pytest.raises(UserError, match="expected class weights of at least 0"):
            kind(class_weight={0: weight, 1: 1.0}).fit(X, y)


@pytest.mark.filterwarnings("ignore:.*floor")
@pytest.mark.parametrize("kind", ALL)
def test_going_on_with_data_of_another_form_is_refused(kind):
    X, y = data()
    model = kind(2, random_state=0, n_init=1, tol=1e-3, warm_start=True).fit(X, y)
    with pytest.raises(UserError, match=r"expected 1 column\(s\) and .* from the last fit, got 2 column\(s\)"):
        model.fit(np.column_stack([X, X]), y)
    model = kind(2, random_state=0, n_init=1, tol=1e-3, warm_start=True).fit(X, y)
    with pytest.raises(UserError, match=r"got 1 column\(s\) and (2 output|classes \[0, 1, 2\])"):
        model.fit(X, np.arange(40) % 3 if hasattr(model, "classes_") else np.column_stack([y, y]))


@pytest.mark.filterwarnings("ignore:.*floor")
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"gate": "polynomial"}, {"gate": "kernel"}),
        ({"expert": PoissonExpert(degree=2)}, {"expert": PoissonExpert()}),
        ({"expert": "student_t"}, {"expert": "poisson"}),
        ({"expert": PoissonExpert()}, {"expert": "gamma"}),
    ],
)
def test_a_warm_start_may_change_gate_and_experts(before, after):
    X, y = data()
    model = MoERegressor(2, random_state=0, n_init=1, tol=1e-6, warm_start=True, **before).fit(X, y + 1)
    model.set_params(**after).fit(X, y + 1)
    again = MoERegressor(2, random_state=0, n_init=1, tol=1e-6, division=model.responsibilities(X, y + 1), **after)
    assert model.log_likelihood_ > again.fit(X, y + 1).log_likelihood_ - 1.0
    assert [step.objective for step in model.history_] == sorted(step.objective for step in model.history_)


def test_draws_are_counted():
    X, y = data()
    with pytest.raises(UserError, match="expected n_samples a whole number of at least 1, got 0"):
        MoERegressor(1).fit(X, y).sample_y(X, 0)
