import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import gammaln
from sklearn.linear_model import GammaRegressor, PoissonRegressor

from mixtura.classical import GammaExpert, MoERegressor, PoissonExpert, SoftmaxGate
from mixtura.classical.experts.glm import gamma_shape
from mixtura.errors import UserError
from tests.classical.samples import log_linear


def test_the_generating_poisson_experts_come_back():
    X, mean, rng = log_linear()
    model = MoERegressor(2, expert="poisson", random_state=0).fit(X, rng.poisson(mean))
    order = np.argsort(model.experts_.coef[:, 0])
    np.testing.assert_allclose(model.experts_.coef[order, 0], [-1, 1], atol=0.08)
    np.testing.assert_allclose(model.experts_.intercept[order], [2.5, 1.0], atol=0.12)


def test_the_generating_gamma_experts_come_back():
    X, mean, rng = log_linear()
    model = MoERegressor(2, expert="gamma", random_state=0).fit(X, rng.gamma(9.0, mean / 9.0))
    order = np.argsort(model.experts_.coef[:, 0])
    np.testing.assert_allclose(model.experts_.coef[order, 0], [-1, 1], atol=0.08)
    np.testing.assert_allclose(model.experts_.shape, 9.0, rtol=0.2)


@pytest.mark.parametrize("ridge", [0.0, 5.0])
def test_one_expert_is_the_regression_of_scikit_learn(ridge):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 2))
    counts = rng.poisson(np.exp(0.5 + X @ [0.4, -0.2]))
    ours = MoERegressor(1, expert=PoissonExpert(ridge), tol=1e-12).fit(X, counts)
    theirs = PoissonRegressor(alpha=ridge / 200, tol=1e-10).fit(X, counts)
    np.testing.assert_allclose(ours.experts_.coef[0], theirs.coef_, atol=1e-5)
    positive = rng.gamma(2.0, np.exp(X @ [0.4, -0.2]) / 2.0)
    gamma = MoERegressor(1, expert=GammaExpert(), tol=1e-12).fit(X, positive)
    np.testing.assert_allclose(
        gamma.experts_.coef[0], GammaRegressor(alpha=0.0, tol=1e-10).fit(X, positive).coef_, atol=1e-5
    )


def test_em_ends_where_a_general_optimiser_ends():
    X, mean, rng = log_linear(200)
    y = rng.poisson(mean).astype(float)
    gate = SoftmaxGate(ridge=0.0)
    model = MoERegressor(2, expert="poisson", gate=gate, random_state=0, tol=1e-12, max_iter=5000).fit(X, y)

    def loss(free):
        log_mean = free[:2] + X * free[2:4]
        score = free[4] + free[5] * X[:, 0]
        log_gate = -np.logaddexp(0, np.stack([-score, score], axis=1))
        density = log_gate + y[:, None] * log_mean - np.exp(log_mean) - gammaln(y + 1)[:, None]
        return -np.logaddexp(density[:, 0], density[:, 1]).sum()

    slope = model.gate_.coef[0] - model.gate_.coef[1]
    constant = model.gate_.intercept[0] - model.gate_.intercept[1]
    ours = np.concatenate([model.experts_.intercept, model.experts_.coef[:, 0], [constant], slope])
    assert loss(ours) == pytest.approx(-model.log_likelihood_, rel=1e-10)
    assert minimize(loss, ours, method="BFGS").fun > -model.log_likelihood_ - 1e-4


def test_an_offset_is_an_exposure():
    rng = np.random.default_rng(0)
    x, exposure = rng.normal(size=2000), rng.uniform(1, 50, size=2000)
    counts = rng.poisson(exposure * np.exp(-1 + 0.5 * x))
    model = MoERegressor(1, expert=PoissonExpert(offset=1)).fit(np.column_stack([x, np.log(exposure)]), counts)
    np.testing.assert_allclose(model.experts_.coef, [[0.5]], atol=0.02)
    np.testing.assert_allclose(model.experts_.intercept, [-1.0], atol=0.03)
    np.testing.assert_allclose(model.predict([[0.0, np.log(10)]]), 10 * np.exp(-1), rtol=0.05)


def test_a_share_of_zeros_only_stays_finite():
    X = np.repeat([0.0, 1.0], 30)[:, None]
    y = np.repeat([0.0, 5.0], 30)
    model = MoERegressor(2, expert="poisson", random_state=0).fit(X, y)
    assert np.isfinite(model.log_likelihood_)
    np.testing.assert_allclose(model.predict([[0.0], [1.0]]), [0.0, 5.0], atol=0.2)


def test_quantiles_are_counts():
    X, mean, rng = log_linear(300)
    model = MoERegressor(2, expert="poisson", random_state=0).fit(X, rng.poisson(mean))
    low, middle, high = model.predict_quantiles(X[:20]).T
    assert np.array_equal(middle, np.floor(middle))
    assert (low <= middle).all()
    assert (middle < high).all()
    predictive = model.predictive(X[:20])
    assert (predictive.cdf(middle) >= 0.5).all()
    assert (predictive.cdf(middle - 1) < 0.5).all()


def test_gamma_shape_solves_its_equation():
    from scipy.special import digamma

    spread = np.array([1e-4, 0.1, 1.0, 10.0])
    shape = gamma_shape(spread, most=1e6)
    np.testing.assert_allclose(np.log(shape) - digamma(shape), spread, rtol=1e-6)


def test_an_exact_gamma_is_floored_with_a_warning():
    X = np.linspace(0, 1, 30)[:, None]
    with pytest.warns(UserWarning, match="floor"):
        model = MoERegressor(1, expert="gamma").fit(X, np.exp(X[:, 0]))
    assert model.experts_.shape.item() == pytest.approx(1e6)


@pytest.mark.parametrize(
    ("expert", "y", "message"),
    [
        ("poisson", [1.0, -1.0, 2.0], r"expected counts .* got -1"),
        ("poisson", [1.0, 0.5, 2.0], r"expected counts .* got 0.5"),
        ("gamma", [1.0, 0.0, 2.0], "expected positive targets for Gamma experts, got 0"),
        ("poisson", [[1.0, 2.0]] * 3, "expected one output"),
        ("student_t", [[1.0, 2.0]] * 3, "expected one output"),
    ],
)
def test_targets_of_another_family_are_refused(expert, y, message):
    with pytest.raises(UserError, match=message):
        MoERegressor(1, expert=expert).fit([[0.0], [1.0], [2.0]], y)
