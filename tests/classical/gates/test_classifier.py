import numpy as np
import pytest
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.svm import LinearSVC

from mixtura.classical import ClassifierGate, MoERegressor
from mixtura.errors import UserError
from tests.classical.samples import switching


@pytest.mark.parametrize(
    "classifier",
    [LogisticRegression(), RandomForestClassifier(5, min_samples_leaf=20, random_state=0), KNeighborsClassifier(25)],
    ids=lambda classifier: type(classifier).__name__,
)
def test_any_classifier_is_a_gate(classifier):
    X, y, right = switching(400)
    model = MoERegressor(2, gate=classifier, random_state=0, n_init=1).fit(X, y)
    asked = model.gate_proba(X).argmax(axis=1)
    assert max((asked == right).mean(), (asked != right).mean()) > 0.88
    np.testing.assert_allclose(model.gate_proba(X).sum(axis=1), 1.0)
    assert model.objective_ == max(step.objective for step in model.history_)


def test_the_gate_looks_at_its_columns():
    X, y, _ = switching(200)
    wide = np.column_stack([np.zeros(200), X])
    gate = ClassifierGate(LogisticRegression(), columns=[1])
    model = MoERegressor(2, gate=gate, random_state=0, n_init=2).fit(wide, y)
    assert model.gate_.estimator.n_features_in_ == 1


def test_a_classifier_without_probabilities_is_refused():
    with pytest.raises(UserError, match="expected a gate classifier with predict_proba"):
        MoERegressor(gate=LinearSVC()).fit([[0.0], [1.0]], [0.0, 1.0])
