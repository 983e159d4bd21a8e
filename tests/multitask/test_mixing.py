"""Both ways through a level give the same numbers; parts of a routing."""

from functools import partial

import pytest
import torch

import mixtura as mx
from mixtura.multitask.mixing import ExpertStack, Level, every_expert, part_of, weights_of
from mixtura.routers import Dense, ExpertChoice, Switch, TopK

X = torch.randn(9, 4, generator=torch.Generator().manual_seed(2))
KINDS = {
    "stack": lambda E, D: ExpertStack(num_experts=E, dim=D, widths=(6, 4)),
    "grouped": lambda E, D: mx.GroupedMLP(num_experts=E, dim=D, hidden=5, bias=True),
    "grouped, plain": lambda E, D: mx.GroupedMLP(num_experts=E, dim=D, hidden=5, activation="relu"),
    "modules": lambda E, D: mx.ModuleExperts([torch.nn.Linear(D, 4) for _ in range(E)]),
}


def level(make, gate, *, own=2, shared=3):
    torch.manual_seed(0)
    groups = {"a": own, None: shared} if own else {None: shared}
    mixes = {"a": ("a", None) if own else (None,)}
    return Level(dim=4, groups=groups, gates=mixes, make_gate={"a": gate}, make_experts=make)


@pytest.mark.parametrize("own", [0, 2])
@pytest.mark.parametrize("gate", [partial(TopK, k=2), Switch, Dense, ExpertChoice], ids=repr)
@pytest.mark.parametrize("make", KINDS.values(), ids=list(KINDS))
def test_the_sparse_and_the_dense_way_are_equal(make, gate, own):
    at = level(make, gate, own=own)
    inputs = {"a": X, None: 2 * X}
    routing = at.gates[0](X)
    ways = at._sparse(inputs, {"a": routing})["a"], at._dense(inputs, {"a": weights_of(routing)})["a"]
    torch.testing.assert_close(*ways)
    direction, parameters = torch.randn_like(ways[0]), list(at.parameters())
    first, second = (
        torch.autograd.grad((way * direction).sum(), parameters, retain_graph=True, allow_unused=True) for way in ways
    )
    for one, other in zip(first, second, strict=True):
        one = torch.zeros_like(other) if one is None else one  # an expert that no row was sent to
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("gate", "way"), [(Switch, "_sparse"), (Dense, "_dense"), (partial(TopK, k=3), "_dense")])
def test_few_choices_take_the_sparse_way(gate, way, monkeypatch):
    at, taken = level(KINDS["stack"], gate, own=0), []
    for name in ("_sparse", "_dense"):
        whole = getattr(at, name)
        monkeypatch.setattr(at, name, lambda *a, whole=whole, name=name: taken.append(name) or whole(*a))
    at({"a": X, None: X})
    assert taken == [way]


def test_a_gate_over_one_expert_has_nothing_to_choose():
    at = level(KINDS["stack"], Dense, own=0, shared=1)
    mixed, weights = at({"a": X, None: X})
    assert weights == {}
    assert not list(at.gates.parameters())
    torch.testing.assert_close(mixed["a"], every_expert(at.experts[0], X)[:, 0])


def test_parts_of_a_routing_together_are_the_whole():
    routing = TopK(4, num_experts=5, k=2)(X)
    parts = [weights_of(part_of(routing, start, count)) for start, count in ((0, 2), (2, 3))]
    torch.testing.assert_close(torch.cat(parts, 1), weights_of(routing))


def test_routers_that_count_are_told_what_was_routed():
    at = level(KINDS["stack"], partial(mx.routers.SigmoidBias, k=2), own=0)
    at({"a": X, None: X})
    assert at.gates[0].pending_counts.sum() == 2 * len(X)


def test_experts_of_no_known_kind():
    with pytest.raises(mx.UserError, match="expected ExpertStack, GroupedMLP or ModuleExperts, got Linear"):
        every_expert(torch.nn.Linear(4, 4), X)
