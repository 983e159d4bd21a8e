import numpy as np
import pytest
from sklearn.linear_model import LinearRegression
from sklearn.preprocessing import PolynomialFeatures

from mixtura.classical import ConstantGate, LinearExpert, MoERegressor
from mixtura.classical.data import Data
from mixtura.errors import UserError
from tests.classical.samples import switching


def test_the_generating_lines_come_back():
    X, y, _ = switching(3000)
    model = MoERegressor(2, random_state=0).fit(X, y)
    order = np.argsort(model.experts_.coef[:, 0, 0])
    np.testing.assert_allclose(model.experts_.coef[order, 0, 0], [-3, 2], atol=0.05)
    np.testing.assert_allclose(model.experts_.intercept[order, 0], [1, 1], atol=0.05)
    np.testing.assert_allclose(np.sqrt(model.experts_.covariance.ravel()), 0.1, rtol=0.08)


def test_one_expert_is_least_squares():
    X, y, _ = switching()
    model = MoERegressor(1, expert="linear").fit(X, y)
    np.testing.assert_allclose(model.predict(X), LinearRegression().fit(X, y).predict(X))
    assert model.n_parameters_ == 3


def test_polynomial_terms_are_those_of_scikit_learn():
    X = np.random.default_rng(0).normal(size=(9, 3))
    features = LinearExpert(degree=3).bind(Data(X=X, y=X, sample_weight=np.ones(9)), 1).features
    theirs = PolynomialFeatures(3, include_bias=False).fit_transform(X)
    np.testing.assert_allclose(np.sort(features(X), axis=1), np.sort(theirs, axis=1))


def test_a_shared_variance_is_the_pooled_one():
    X, y, _ = switching()
    y = np.where(X[:, 0] > 0, 10 * y, y)
    own = MoERegressor(2, random_state=0).fit(X, y).experts_.covariance.ravel()
    shared = MoERegressor(2, expert=LinearExpert(shared_variance=True), random_state=0).fit(X, y)
    both = shared.experts_.covariance.ravel()
    assert both[0] == both[1]
    assert own.min() < both[0] < own.max()
    assert shared.n_parameters_ == MoERegressor(2, random_state=0).fit(X, y).n_parameters_ - 1


def test_full_covariance_finds_the_correlation_of_the_noise():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(2000, 1))
    noise = rng.multivariate_normal([0, 0], [[1.0, 0.8], [0.8, 1.0]], size=2000)
    model = MoERegressor(1, expert=LinearExpert(covariance="full")).fit(X, X + noise)
    np.testing.assert_allclose(model.experts_.covariance[0], [[1, 0.8], [0.8, 1]], atol=0.1)
    diagonal = MoERegressor(1).fit(X, X + noise)
    assert model.log_likelihood_ > diagonal.log_likelihood_ + 500
    assert model.n_parameters_ == diagonal.n_parameters_ + 1


def test_experts_may_look_at_some_columns_only():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(300, 3))
    model = MoERegressor(1, expert=LinearExpert(columns=[2])).fit(X, X @ [1.0, 2.0, 3.0])
    assert model.experts_.coef.shape == (1, 1, 1)
    assert model.experts_.coef[0, 0, 0] == pytest.approx(3.0, abs=0.2)


def test_an_exact_fit_is_floored_with_a_warning():
    X = np.linspace(0, 1, 50)[:, None]
    with pytest.warns(UserWarning, match="the variance of expert 0 fell to the floor"):
        model = MoERegressor(1).fit(X, 3 * X[:, 0])
    assert np.isfinite(model.log_likelihood_)
    floor = 1e-6 * np.var(3 * X[:, 0])
    assert model.experts_.covariance.item() == pytest.approx(floor)


def test_more_parameters_than_rows_is_floored_too():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(6, 20)), rng.normal(size=6)
    with pytest.warns(UserWarning, match="floor"):
        model = MoERegressor(1).fit(X, y)
    np.testing.assert_allclose(model.predict(X), y, atol=1e-6)


def test_ridge_shrinks_and_its_penalty_is_in_the_objective():
    X, y, _ = switching()
    model = MoERegressor(1, expert=LinearExpert(alpha=100.0), gate=ConstantGate()).fit(X, y)
    assert abs(model.experts_.coef.item()) < abs(MoERegressor(1).fit(X, y).experts_.coef.item())
    penalty = 50.0 * model.experts_.coef.item() ** 2 / model.experts_.covariance.item()
    assert model.log_likelihood_ - model.objective_ == pytest.approx(penalty)


@pytest.mark.parametrize(
    ("family", "message"),
    [
        (LinearExpert(alpha=-1), "expected alpha a finite number of at least 0, got -1"),
        (LinearExpert(degree=0), "expected degree"),
        (LinearExpert(degree=1.5), "expected degree a whole number of at least 1, got 1.5"),
        (LinearExpert(covariance="tied"), "expected covariance one of diagonal, full, got 'tied'"),
        (LinearExpert(columns=[3]), "expected a column number below 1, got 3"),
        (LinearExpert(variance_floor=np.nan), "expected variance_floor"),
    ],
)
def test_bad_settings_are_refused(family, message):
    X, y, _ = switching(20)
    with pytest.raises(UserError, match=message):
        MoERegressor(2, expert=family).fit(X, y)


def test_experts_that_look_at_no_column_are_constants():
    X = np.linspace(-1, 1, 80)[:, None]
    y = np.where(X[:, 0] > 0, 2.0, -1.0) + 0.1 * np.sin(99 * X[:, 0])
    model = MoERegressor(2, expert=LinearExpert(columns=[]), random_state=0).fit(X, y)
    np.testing.assert_allclose(np.sort(model.experts_.intercept.ravel()), [-1, 2], atol=0.05)
    assert model.experts_.coef.shape == (2, 1, 0)
    assert model.score(X, y) > 0.9
