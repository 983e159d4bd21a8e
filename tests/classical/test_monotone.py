"""The likelihood never falls: every kind of expert on 100 random problems."""

import pytest

from mixtura.classical.experts.gaussian import LinearExpert
from mixtura.classical.experts.glm import GammaExpert, PoissonExpert
from mixtura.classical.experts.logistic import LogisticExpert
from mixtura.classical.experts.student import StudentTExpert
from mixtura.classical.gates.softmax import SoftmaxGate
from tests.classical.problems import falls

EXPERTS = [
    (LinearExpert(), "real"),
    (LinearExpert(alpha=3.0), "real"),
    (LinearExpert(alpha=1.0, shared_variance=True), "pair"),
    (LinearExpert(degree=2), "real"),
    (LinearExpert(covariance="full", alpha=0.5), "pair"),
    (PoissonExpert(), "count"),
    (PoissonExpert(1.0, offset=0), "count"),
    (GammaExpert(), "positive"),
    (StudentTExpert(), "real"),
    (StudentTExpert("estimate", alpha=0.5), "real"),
    (LogisticExpert(), "label"),
    (LogisticExpert(0.0), "label"),
]


@pytest.mark.parametrize(("family", "targets"), EXPERTS, ids=lambda value: repr(value).replace(" ", ""))
def test_no_expert_lowers_the_likelihood(family, targets):
    found = {seed: lost for seed in range(100) if (lost := falls(seed, family, SoftmaxGate(), targets=targets))}
    assert found == {}
