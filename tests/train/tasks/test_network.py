"""The model of a configuration."""

import pytest
import torch

from mixtura.errors import UserError
from mixtura.multitask import AITM, PLE, GradNorm, MMoE, OMoE, SharedBottom
from mixtura.train.tasks.network import NetworkConfig

TABLE = {
    "cardinalities": (3, 4),
    "numbers": 2,
    "names": ("a", "b"),
    "kinds": ("binary", "multiclass"),
    "classes": (2, 3),
}


@pytest.mark.parametrize(
    ("architecture", "kind"),
    [("mmoe", MMoE), ("ple", PLE), ("omoe", OMoE), ("shared_bottom", SharedBottom), ("aitm", AITM)],
)
def test_every_architecture(architecture, kind):
    model = NetworkConfig(architecture=architecture, expert=(8,), **TABLE).build()
    assert type(model.network) is kind
    said = model(torch.zeros(5, 2, dtype=torch.int64), torch.zeros(5, 2))
    assert said.scores["b"].shape == (5, 3)


def test_sparse_gates_choose_k():
    model = NetworkConfig(k=2, num_experts=6, **TABLE).build().eval()
    gate = model(torch.zeros(5, 2, dtype=torch.int64), torch.zeros(5, 2)).gates[0]["a"]
    assert ((gate > 0).sum(1) == 2).all()


def test_the_balance_learns_with_the_model():
    model = NetworkConfig(balance="gradnorm", weights=(1.0, 2.0), **TABLE).build()
    assert isinstance(model.balance, GradNorm)
    assert "balance.weight" in dict(model.named_parameters())
    shared = model.network.shared_parameters()[0]
    total = model.total({"a": shared.square().sum(), "b": shared.sum()})
    total.backward()
    assert model.balance.weight.grad is not None
    assert model.balance.weights()["b"] == 2


EVENTS = {**TABLE, "names": ("click", "a:b", "buy"), "kinds": ("binary",) * 3, "classes": (2,) * 3}


def test_a_label_after_another_is_their_product():
    model = NetworkConfig(after=("buy:click",), **EVENTS).build().eval()
    assert [task.after for task in model.network.tasks] == [None, None, "click"]
    said = model(torch.tensor([[0, 1]]), torch.ones(1, 2)).predictions()
    assert said["buy"] < said["click"]
    assert NetworkConfig(after=("buy:a:b",), **EVENTS).tasks()[2].after == "a:b"


@pytest.mark.parametrize(
    ("after", "message"),
    [
        ("buy:x", r"model.after: expected LATER:EARLIER of click, a:b, buy, got 'buy:x'"),
        ("click:buy", r"task 'click': expected after= to name an earlier binary task \(there is none\), got 'buy'"),
    ],
)
def test_an_event_after_none(after, message):
    with pytest.raises(UserError, match=message):
        NetworkConfig(after=(after,), **EVENTS).build()


def test_bad_input():
    with pytest.raises(UserError, match=r"model.weights: expected one for each of a, b"):
        NetworkConfig(weights=(1.0,), **TABLE)
    with pytest.raises(UserError, match=r"model.k: expected at least 0, got -1"):
        NetworkConfig(k=-1)
