import pytest
from sklearn.linear_model import LogisticRegression, Ridge

from mixtura.classical import Centroids, ClassifierGate, GaussianGate
from mixtura.classical.gates.choose import GATES, choose_gate
from mixtura.classical.gates.fixed import FixedGate
from mixtura.errors import UserError


@pytest.mark.parametrize("name", GATES)
def test_every_name_is_a_gate(name):
    assert choose_gate(name) is GATES[name]


def test_gates_pass_and_classifiers_are_wrapped():
    gate = GaussianGate("shared")
    assert choose_gate(gate) is gate
    assert isinstance(choose_gate(LogisticRegression()), ClassifierGate)
    assert isinstance(choose_gate("fixed", Centroids()), FixedGate)


@pytest.mark.parametrize(
    ("gate", "division", "message"),
    [
        ("hard", None, "expected gate one of softmax, .* got 'hard'"),
        (Ridge(), None, "expected gate one of"),
        ("fixed", None, "expected a division that knows new rows for gate='fixed', got none"),
        ("fixed", [0, 1], "got labels of the training rows"),
    ],
)
def test_what_is_no_gate_is_refused(gate, division, message):
    with pytest.raises(UserError, match=message):
        choose_gate(gate, division)
