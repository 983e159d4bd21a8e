"""The likelihood never falls: every kind of gate on 100 random problems."""

import pytest

from mixtura.classical.division import Centroids
from mixtura.classical.experts.gaussian import LinearExpert
from mixtura.classical.gates.fixed import FixedGate
from mixtura.classical.gates.gaussian import GaussianGate
from mixtura.classical.gates.softmax import ConstantGate, SoftmaxGate
from tests.classical.problems import falls

GATES = [
    SoftmaxGate(ridge=0.0),
    SoftmaxGate(ridge=2.0, max_steps=4),
    SoftmaxGate(features="polynomial"),
    SoftmaxGate(features="kernel", n_landmarks=5),
    GaussianGate(),
    GaussianGate("diagonal"),
    GaussianGate("shared"),
    ConstantGate(),
    FixedGate(Centroids(softness=1.0)),
]


@pytest.mark.parametrize("gate", GATES, ids=lambda gate: repr(gate).replace(" ", ""))
def test_no_gate_lowers_the_likelihood(gate):
    found = {seed: lost for seed in range(100) if (lost := falls(seed, LinearExpert(), gate))}
    assert found == {}
