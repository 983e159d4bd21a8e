"""What both hierarchies share: how the tree and the gates are chosen, and what is refused."""

import numpy as np
import pytest

from mixtura.classical import ConstantGate, HMERegressor, LogPosteriorGate, SoftmaxGate, Tree
from mixtura.classical.gates.softmax import SoftmaxFitted
from mixtura.errors import UserError
from tests.classical.hierarchy.samples import four_lines

FAST = {"n_init": 1, "tol": 1e-2, "random_state": 0}


@pytest.mark.parametrize(
    ("settings", "shape"),
    [
        ({"depth": 0}, None),
        ({"depth": 1, "branching": 3}, (None, None, None)),
        ({"depth": 2, "branching": (2, 2)}, ((None, None), (None, None))),
        ({"tree": [None, [None, None]]}, (None, (None, None))),
        ({"tree": Tree.uniform(1, 2)}, (None, None)),
    ],
)
def test_the_tree_is_the_one_asked_for(settings, shape):
    X, y = four_lines(100)
    model = HMERegressor(**settings, **FAST).fit(X, y)
    assert model.tree_.shape() == shape
    assert model.n_experts_ == len(model.tree_.leaves)


@pytest.mark.parametrize(
    "gate", ["softmax", "least_squares", "polynomial", SoftmaxGate(0.1), LogPosteriorGate(), ConstantGate()]
)
def test_every_conditional_gate_may_sit_in_the_nodes(gate):
    X, y = four_lines(100)
    model = HMERegressor(2, gate=gate, **FAST).fit(X, y)
    assert np.isfinite(model.predict(X)).all()
    assert isinstance(model.gate_.nodes[0], SoftmaxFitted) is not isinstance(gate, ConstantGate)
    assert (model.online_ is None) is isinstance(gate, ConstantGate)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gate": "gaussian"}, "probabilities given X"),
        ({"gate": "nothing"}, "expected gate"),
        ({"criterion": "cv"}, "criterion"),
        ({"max_leaves": 0}, "max_leaves"),
        ({"max_leaves": 3, "depth": 2}, "expected max_leaves of at least the 4 leaves so far, got 3; lower depth"),
        ({"prune": "no"}, "expected prune True or False, got 'no'"),
        ({"depth": -1}, "depth"),
        ({"tree": "abc"}, "nested sequences"),
        ({"expert": ["linear"] * 3}, "n_experts=3"),
        ({"depth": 7}, "at least one sample per expert"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    X, y = four_lines(60)
    with pytest.raises(UserError, match=message):
        HMERegressor(**(FAST | settings)).fit(X, y)


def test_there_is_no_tree_before_fit():
    with pytest.raises(AttributeError, match="before fit"):
        _ = HMERegressor().tree_
