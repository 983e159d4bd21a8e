import numpy as np
import pytest
from scipy import stats
from scipy.integrate import quad

from mixtura.classical.predictive import MixturePredictive, pool
from mixtura.errors import UserError


def predictive(gate=((0.3, 0.7), (1.0, 0.0))):
    one = stats.norm(np.array([[-1.0], [0.0]]), 0.5)
    two = stats.norm(np.array([[2.0], [50.0]]), 1.0)
    return MixturePredictive(gate=np.array(gate), distributions=[one, two], squeeze=True)


def test_moments_are_those_of_the_mixture():
    p = predictive()
    np.testing.assert_allclose(p.mean(), [0.3 * -1 + 0.7 * 2, 0.0])
    between = 0.3 * (-1 - 1.1) ** 2 + 0.7 * (2 - 1.1) ** 2
    noise = 0.3 * 0.25 + 0.7 * 1.0
    kinds = p.uncertainty()
    np.testing.assert_allclose(kinds.noise, [noise, 0.25])
    np.testing.assert_allclose(kinds.between, [between, 0.0], atol=1e-12)
    np.testing.assert_allclose(p.variance(), [noise + between, 0.25])
    np.testing.assert_allclose(kinds.gate_entropy, [-0.3 * np.log(0.3) - 0.7 * np.log(0.7), 0.0])


def test_the_density_integrates_to_one_and_to_the_variance():
    p = MixturePredictive(
        gate=np.array([[0.3, 0.7]]), distributions=[stats.norm(-1, 0.5), stats.t(5, 2, 1.0)], squeeze=True
    )

    def density(value):
        return float(np.exp(p.log_density(np.array([value]))[0]))

    assert quad(density, -40, 60, points=[-1, 2], limit=200)[0] == pytest.approx(1.0, abs=1e-6)


def test_quantiles_invert_the_distribution_function():
    p = predictive()
    for level in (0.01, 0.5, 0.9):
        np.testing.assert_allclose(p.cdf(p.quantile(level)[0]), level, atol=1e-9)
    np.testing.assert_allclose(p.quantile([0.5])[0, 1], 0.0, atol=1e-9)


def test_quantiles_of_counts_are_the_smallest_that_reach_the_level():
    p = MixturePredictive(
        gate=np.array([[0.5, 0.5]]), distributions=[stats.poisson(1.0), stats.poisson(20.0)], squeeze=True
    )
    counts = np.arange(60)
    cdf = 0.5 * stats.poisson(1.0).cdf(counts) + 0.5 * stats.poisson(20.0).cdf(counts)
    for level in (0.1, 0.2, 0.5, 0.95):
        assert p.quantile(level)[0, 0] == counts[cdf >= level][0]


def test_samples_have_the_moments():
    p = predictive()
    drawn = p.sample(20_000, rng=np.random.default_rng(0))
    assert drawn.shape == (20_000, 2)
    np.testing.assert_allclose(drawn.mean(axis=0), p.mean(), atol=0.05)
    np.testing.assert_allclose(drawn.var(axis=0), p.variance(), rtol=0.05)


def test_several_outputs_keep_their_axis():
    one = stats.norm(np.zeros((3, 2)), 1.0)
    p = MixturePredictive(gate=np.ones((3, 1)), distributions=[one], squeeze=False)
    assert p.mean().shape == (3, 2)
    assert p.quantile([0.1, 0.9]).shape == (2, 3, 2)
    assert p.sample(4, rng=np.random.default_rng(0)).shape == (4, 3, 2)
    np.testing.assert_allclose(p.log_density(np.zeros((3, 2))), -np.log(2 * np.pi))


@pytest.mark.parametrize("q", [0.0, 1.0, -0.5, [0.5, 2.0]])
def test_quantiles_outside_are_refused(q):
    with pytest.raises(UserError, match="expected quantiles between 0 and 1"):
        predictive().quantile(q)


def test_pooling_chooses_the_highest_gate():
    gate = np.array([[0.4, 0.6], [0.9, 0.1]])
    assert pool(gate, "weighted") is gate
    assert pool(gate, "highest").tolist() == [[0.0, 1.0], [1.0, 0.0]]


def test_an_expert_that_is_not_asked_may_be_without_bounds():
    heavy = stats.t(1.5, np.array([[0.0]]), 1.0)
    far = stats.poisson(np.array([[1e200]]))
    known = stats.norm(np.array([[2.0]]), 0.5)
    kinds = MixturePredictive(
        gate=np.array([[0.0, 0.0, 1.0]]), distributions=[heavy, far, known], squeeze=True
    ).uncertainty()
    np.testing.assert_allclose([kinds.noise, kinds.between], [[0.25], [0.0]])
