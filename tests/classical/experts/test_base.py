"""The contract of expert families: what EM sees in training is what everyone sees later."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge

from mixtura.classical.experts.estimator import EstimatorExpert
from mixtura.classical.experts.gaussian import LinearExpert
from mixtura.classical.experts.glm import GammaExpert, PoissonExpert
from mixtura.classical.experts.logistic import LogisticExpert
from mixtura.classical.experts.mixed import MixedExpert
from mixtura.classical.experts.student import StudentTExpert
from tests.classical.problems import random_data

FAMILIES = [
    (LinearExpert(degree=2), "real"),
    (LinearExpert(), "pair"),
    (PoissonExpert(), "count"),
    (PoissonExpert(offset=0), "count"),
    (GammaExpert(), "positive"),
    (StudentTExpert(), "real"),
    (EstimatorExpert(Ridge()), "pair"),
    (MixedExpert((LinearExpert(), StudentTExpert(), EstimatorExpert(Ridge()))), "real"),
    (LogisticExpert(), "label"),
    (EstimatorExpert(LogisticRegression()), "label"),
]
# A seed whose rows are all apart, and enough for three experts.
SEED = 3


def fitted(family, targets):
    data = random_data(SEED, targets)
    trainer = family.bind(data, 3)
    weights = np.random.default_rng(0).random((data.n_samples, 3)) * data.sample_weight[:, None]
    return data, trainer, trainer.fit(weights, None)


@pytest.mark.parametrize(("family", "targets"), FAMILIES, ids=lambda value: repr(value).replace(" ", ""))
def test_training_and_later_give_one_density(family, targets):
    data, trainer, experts = fitted(family, targets)
    assert experts.n_experts == 3
    assert experts.log_density(data.X, data.y).shape == (data.n_samples, 3)
    np.testing.assert_allclose(trainer.log_density(experts), experts.log_density(data.X, data.y), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    ("family", "targets"), [f for f in FAMILIES if f[1] != "label"], ids=lambda value: repr(value).replace(" ", "")
)
def test_distributions_have_the_density_and_the_mean(family, targets):
    data, _, experts = fitted(family, targets)
    distributions = experts.distributions(data.X)
    mean = np.stack([distribution.mean() * np.ones_like(data.y) for distribution in distributions], axis=1)
    np.testing.assert_allclose(mean, experts.mean(data.X), rtol=1e-9)
    name = "logpmf" if targets == "count" else "logpdf"
    density = np.array([getattr(d, name)(data.y).sum(axis=1) for d in distributions]).T
    np.testing.assert_allclose(density, experts.log_density(data.X, data.y), rtol=1e-8)


@pytest.mark.parametrize(
    ("family", "targets"), [f for f in FAMILIES if f[1] == "label"], ids=lambda value: repr(value).replace(" ", "")
)
def test_classifiers_give_probabilities_that_sum_to_one(family, targets):
    data, _, experts = fitted(family, targets)
    proba = np.exp(experts.log_proba(data.X))
    assert proba.shape == (data.n_samples, 3, 3)
    np.testing.assert_allclose(proba.sum(axis=2), 1.0)
    rows = np.arange(data.n_samples)
    np.testing.assert_allclose(np.log(proba[rows, :, data.y]), experts.log_density(data.X, data.y))
