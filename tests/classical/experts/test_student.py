import numpy as np
import pytest
from scipy import stats

from mixtura.classical import MoERegressor, StudentTExpert
from mixtura.classical.experts.student import log_t
from mixtura.errors import UserError
from tests.classical.samples import switching


def test_log_t_is_that_of_scipy():
    residual = np.random.default_rng(0).normal(size=(7, 2))
    df, scale = np.array([1.5, 30.0]), np.array([0.3, 4.0])
    np.testing.assert_allclose(log_t(residual, scale, df), stats.t.logpdf(residual, df, scale=scale))


def test_outliers_move_the_lines_little():
    X, y, _ = switching(1000)
    y[::20] += 15.0
    robust = MoERegressor(2, expert="student_t", random_state=0, n_init=6).fit(X, y)
    np.testing.assert_allclose(np.sort(robust.experts_.coef[:, 0]), [-3, 2], atol=0.15)
    normal = MoERegressor(2, expert="linear", random_state=0, n_init=6).fit(X, y)
    assert robust.log_likelihood_ > normal.log_likelihood_ + 200
    clean_X, clean, _ = switching(500, seed=1)
    error = [np.abs(model.predict(clean_X) - clean).mean() for model in (robust, normal)]
    assert error[0] < 0.5 * error[1]


@pytest.mark.parametrize("df", [3.0, 50.0])
def test_the_degrees_of_freedom_come_back(df):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(4000, 1))
    y = X[:, 0] + 0.5 * rng.standard_t(df, size=4000)
    found = MoERegressor(1, expert=StudentTExpert("estimate"), tol=1e-7).fit(X, y).experts_
    assert 0.8 * df < found.df.item() < (1.25 * df if df < 10 else 201)
    assert found.scale.item() == pytest.approx(0.5, rel=0.06)


def test_df_below_its_range_is_refused():
    with pytest.raises(UserError, match="expected df"):
        MoERegressor(1, expert=StudentTExpert(0.1)).fit([[0.0], [1.0]], [0.0, 1.0])


@pytest.mark.parametrize("pooling", ["weighted", "highest"])
def test_very_heavy_tails_leave_the_mean_and_the_uncertainty_defined(pooling):
    rng = np.random.default_rng(0)
    X = np.concatenate([rng.uniform(-2, -1, size=(300, 1)), rng.uniform(1, 2, size=(300, 1))])
    y = np.concatenate([rng.standard_cauchy(300), 5 + 0.1 * rng.normal(size=300)])
    model = MoERegressor(2, expert=StudentTExpert("estimate"), pooling=pooling, random_state=0).fit(X, y)
    heavy = int(model.experts_.df.argmin())
    assert model.experts_.df[heavy] == pytest.approx(1.1, abs=0.1)
    mean, std = model.predict(X, return_std=True)
    np.testing.assert_allclose(mean, model.predict(X))
    # Infinite where the expert of heavy tails is asked, and finite where it is not.
    assert np.isinf(std[X[:, 0] < 0]).all()
    if pooling == "highest":
        np.testing.assert_allclose(std[X[:, 0] > 0], 0.1, rtol=0.2)
