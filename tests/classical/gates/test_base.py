"""The contract of gates: what EM sees in training is what everyone sees later."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from mixtura.classical.division import Centroids, InlierOutlier
from mixtura.classical.gates.classifier import ClassifierGate
from mixtura.classical.gates.fixed import FixedGate
from mixtura.classical.gates.gaussian import GaussianGate
from mixtura.classical.gates.softmax import ConstantGate, SoftmaxGate
from tests.classical.problems import random_data

GATES = [
    SoftmaxGate(),
    SoftmaxGate(features="polynomial", columns=[0]),
    SoftmaxGate(features="kernel"),
    GaussianGate(),
    GaussianGate("diagonal"),
    GaussianGate("shared"),
    ConstantGate(),
    FixedGate(Centroids(softness=0.5)),
    FixedGate(InlierOutlier()),
    ClassifierGate(LogisticRegression()),
]


@pytest.mark.parametrize("gate", GATES, ids=lambda gate: repr(gate).replace(" ", ""))
def test_scores_of_training_are_the_probabilities_up_to_the_density_of_the_row(gate):
    data = random_data(3)
    trainer = gate.bind(data, 2)
    share = np.random.default_rng(0).dirichlet([0.5, 0.5], size=data.n_samples)
    fitted = trainer.fit(share * data.sample_weight[:, None], None)
    score, log_proba = trainer.log_score(fitted), fitted.log_proba(data.X)
    assert log_proba.shape == (data.n_samples, 2)
    np.testing.assert_allclose(np.exp(log_proba).sum(axis=1), 1.0, rtol=1e-6)
    finite = np.isfinite(log_proba).all(axis=1)
    score, log_proba = score[finite], log_proba[finite]
    np.testing.assert_allclose(score - score[:, [0]], log_proba - log_proba[:, [0]], rtol=1e-6, atol=1e-9)
    assert fitted.penalty >= 0
    assert fitted.n_parameters >= 0
