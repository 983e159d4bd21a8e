"""Hierarchical: a tree of gates, compared with a walk over it in plain Python."""

import math

import pytest
import torch

import mixtura as mx
from mixtura import UserError
from mixtura.routers.hierarchical import Hierarchical
from tests.routers.tables import rows, with_logits


def softmax(values):
    total = sum(math.exp(v) for v in values)
    return [math.exp(v) / total for v in values]


def walk(logits, branching, k, *, renormalize):
    """(leaf, weight) of every chosen leaf, for one token: logits level by level, node by node."""
    beams, start, parents = [(0, 1.0)], 0, 1
    for b, chosen in zip(branching, k, strict=True):
        further = []
        for node, weight in beams:
            p = softmax(logits[start + node * b : start + (node + 1) * b])
            best = sorted(range(b), key=lambda c, p=p: -p[c])[:chosen]
            total = sum(p[c] for c in best) if renormalize else 1.0
            further += [(node * b + c, weight * p[c] / total) for c in best]
        beams, start, parents = further, start + parents * b, parents * b
    return sorted(beams, key=lambda beam: -beam[1])


TREES = [((2, 3), (1, 2)), ((2, 3), (2, 3)), ((4, 2), (2, 1)), ((2, 2, 3), (2, 1, 2)), ((5,), (3,)), ((1, 4), (1, 2))]


@pytest.mark.parametrize(("branching", "k"), TREES)
@pytest.mark.parametrize("renormalize", [False, True])
def test_every_leaf_and_weight_is_the_walks(branching, k, renormalize):
    router = Hierarchical(6, math.prod(branching), branching=branching, k=k, renormalize=renormalize, init_std=1.0)
    x_TD = torch.randn(20, 6)
    routing = router(x_TD)
    logits = (x_TD @ router.weight.T).tolist()
    for t in range(20):
        expected = walk(logits[t], branching, k, renormalize=renormalize)
        assert rows(routing.expert_N, routing.choices)[t] == [leaf for leaf, _ in expected]
        weights = rows(routing.weight_N, routing.choices)[t]
        assert weights == pytest.approx([weight for _, weight in expected], rel=1e-4)


def test_by_hand():
    # Groups (0.8, 0.2); inside (0.75, 0.25) and (0.1, 0.9).
    probs = torch.tensor([[0.8, 0.2, 0.75, 0.25, 0.1, 0.9]])
    router = Hierarchical(1, 4, branching=(2, 2), k=(2, 1))
    routing = with_logits(router, probs.log().tolist())
    assert routing.expert_N.tolist() == [0, 3]
    torch.testing.assert_close(routing.weight_N, torch.tensor([0.6, 0.18]))
    torch.testing.assert_close(routing.probs_TE, torch.tensor([[0.6, 0.2, 0.02, 0.18]]))
    torch.testing.assert_close(routing.logits_TE, routing.probs_TE.log())  # here each gate's logits are normalised
    normalised = Hierarchical(1, 4, branching=(2, 2), k=(2, 1), renormalize=True)
    torch.testing.assert_close(with_logits(normalised, probs.log().tolist()).weight_N, torch.tensor([0.8, 0.2]))


def test_with_every_leaf_it_is_the_hierarchical_mixture():
    layer = mx.MoEConfig(
        dim=4,
        hidden=5,
        num_experts=6,
        router="hierarchical",
        router_options={"branching": [2, 3], "k": [2, 3]},
    ).build()
    x_TD = torch.randn(7, 4)
    routing = layer.router(x_TD)
    assert routing.choices == 6
    torch.testing.assert_close(routing.weight_N.view(7, 6).sum(-1), torch.ones(7))
    assert torch.equal(routing.weight_N.view(7, 6), routing.probs_TE.sort(descending=True).values)


def test_probabilities_sum_to_one_at_any_depth():
    probs_TE = Hierarchical(4, 24, branching=(2, 3, 4), init_std=2.0)(torch.randn(9, 4)).probs_TE
    torch.testing.assert_close(probs_TE.sum(-1), torch.ones(9))


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("renormalize", [False, True])
def test_hopeless_live_weights_of_a_replay_are_finite(renormalize):
    router = Hierarchical(1, 4, branching=(2, 2), k=(1, 1), renormalize=renormalize)
    layer = mx.MoE(router=router, experts=mx.GroupedMLP(num_experts=4, dim=1, hidden=2))
    with_logits(router, [[9.0, 0.0, 9.0, 0.0, 0.0, 0.0]])
    with mx.record(layer) as log:
        layer(torch.eye(1))
    with_logits(router, [[-200.0, 200.0, -200.0, 200.0, 0.0, 0.0]])
    with mx.replay(layer, log):
        routing = router(torch.eye(1))
    assert routing.expert_N.tolist() == [0]
    assert routing.weight_N.item() == (1.0 if renormalize else 0.0)
    with torch.autograd.detect_anomaly():  # an error where a NaN is met on the way, though it be masked later
        routing.weight_N.sum().backward()
    assert router.weight.grad.isfinite().all()


def test_defaults_are_two_even_levels():
    router = Hierarchical(4, 12)
    assert (router.branching, router.level_k, router.k) == ((3, 4), (2, 1), 2)
    assert Hierarchical(4, 7).branching == (1, 7)
    assert repr(router) == "Hierarchical(dim=4, num_experts=12, branching=(3, 4), k=(2, 1))"


def test_a_gate_of_ones_own_gives_every_node():
    gate = torch.nn.Linear(4, 3 + 12)
    assert Hierarchical(4, 12, gate=gate)(torch.randn(2, 4)).num_experts == 12
    with pytest.raises(UserError, match=r"expected logits of shape \(T, E\) = \(2, 15\) from the gate, got \(2, 12\)"):
        Hierarchical(4, 12, gate=torch.nn.Linear(4, 12))(torch.randn(2, 4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"branching": (3, 3)}, r"product num_experts=12, got \(3, 3\)"),
        ({"branching": ()}, r"product num_experts=12, got \(\)"),
        ({"branching": (-3, -4)}, r"got \(-3, -4\)"),
        ({"branching": 12}, "expected branching with one whole number per level, got 12"),
        ({"branching": (3, 4), "k": 2}, "expected k with one whole number per level, got 2"),
        ({"branching": (3, 4), "k": (2,)}, r"expected k with 1 to b choices .* branching=\(3, 4\), got \(2,\)"),
        ({"branching": (3, 4), "k": (4, 1)}, r"got \(4, 1\)"),
        ({"branching": (3, 4), "k": (1, 0)}, r"got \(1, 0\)"),
    ],
)
def test_bad_input(options, message):
    with pytest.raises(UserError, match=message):
        Hierarchical(4, 12, **options)
