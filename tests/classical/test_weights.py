"""A weight of two is a row that occurs twice, whatever the experts and the gate are."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge

from mixtura.classical import Centroids, LinearExpert, LogisticExpert, MoEClassifier, MoERegressor, SoftmaxGate

EXPERTS = [
    "linear",
    "ridge",
    "polynomial",
    "poisson",
    "gamma",
    "student_t",
    LinearExpert(covariance="full", shared_variance=True),
    Ridge(),
    ["linear", "student_t"],
]
GATES = ["softmax", "polynomial", "kernel", "gaussian", "constant", LogisticRegression(), SoftmaxGate(columns=[1])]
CLASSIFIERS = ["logistic", LogisticExpert(0.0, degree=2), LogisticRegression()]
SETTINGS = {"n_init": 2, "max_iter": 12, "tol": 0.0, "random_state": 0}


def weighted_rows(seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(50, 2))
    y = rng.poisson(np.exp(0.5 * np.abs(X[:, 0]))) + 1.0
    return X, y, rng.integers(0, 4, size=50)


def compare(model, y, method="predict"):
    X, _, counts = weighted_rows()
    asked = []
    for data in ((X, y, counts), (X.repeat(counts, axis=0), y.repeat(counts), None)):
        fitted = model.fit(data[0], data[1], sample_weight=data[2])
        asked.append((getattr(fitted, method)(X), fitted.log_likelihood_))
    np.testing.assert_allclose(asked[0][0], asked[1][0], rtol=1e-5, atol=1e-6)
    assert asked[0][1] == pytest.approx(asked[1][1], rel=1e-7)


# Twelve iterations are compared one by one, and do not converge.
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
class TestAWeightIsARepetition:
    @pytest.mark.parametrize("expert", EXPERTS, ids=lambda value: repr(value).replace(" ", ""))
    def test_for_every_expert(self, expert):
        compare(MoERegressor(2, expert=expert, **SETTINGS), weighted_rows()[1])

    @pytest.mark.parametrize("gate", GATES, ids=repr)
    def test_for_every_gate(self, gate):
        compare(MoERegressor(2, gate=gate, **SETTINGS), weighted_rows()[1])

    @pytest.mark.parametrize("division", [Centroids(), Centroids(softness=0.5)], ids=repr)
    def test_for_a_division_that_is_found(self, division):
        compare(MoERegressor(3, gate="fixed", division=division, **SETTINGS), weighted_rows()[1])

    @pytest.mark.parametrize("expert", CLASSIFIERS, ids=lambda value: repr(value).replace(" ", ""))
    def test_for_every_classifier(self, expert):
        labels = (weighted_rows()[1] > 2).astype(int)
        compare(MoEClassifier(2, expert=expert, **SETTINGS), labels, "predict_proba")
