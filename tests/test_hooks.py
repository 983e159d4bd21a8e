"""Listeners, replays, and what recomputation looks like from inside."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from mixtura import UserError
from mixtura.hooks import announce, is_recomputing, layer_names, once_per_forward, replayed, replaying, tap
from tests.routings import make_routing


def test_taps_nest_and_close():
    heard = []
    layer, routing = nn.Identity(), make_routing([[0]], num_experts=1)
    with tap(lambda *_: heard.append("outer")):
        with tap(lambda *_: heard.append("inner")):
            announce(layer, routing, None)
        announce(layer, routing, None)
    announce(layer, routing, None)
    assert heard == ["outer", "inner", "outer"]


def test_a_tap_closes_after_an_error():
    heard = []
    with pytest.raises(ZeroDivisionError), tap(lambda *_: heard.append(1)):
        raise ZeroDivisionError
    announce(nn.Identity(), make_routing([[0]], num_experts=1), None)
    assert not heard


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_recomputation_is_recognised(use_reentrant):
    seen = []

    def block(x):
        seen.append(is_recomputing())
        return x.sin()

    x = torch.ones(2, requires_grad=True)
    y = checkpoint(block, x, use_reentrant=use_reentrant)
    assert seen == [False]
    y.sum().backward()
    assert seen == [False, True]
    assert not is_recomputing()


def test_replays_serve_forwards_in_order_and_the_innermost_wins():
    router, other = nn.Identity(), nn.Identity()
    with replaying({router: ["a", "b"], other: ["x"]}):
        assert replayed(router) == "a"
        with replaying({router: ["inner"]}):
            assert (replayed(router), replayed(other)) == ("inner", "x")
        assert replayed(router) == "b"
        with pytest.raises(UserError, match="expected a log of at least 3 forwards of this layer, got 2"):
            replayed(router)
    assert replayed(router) is None


def test_names_do_not_show_the_compiler():
    inner = nn.Sequential(nn.ReLU(), torch.compile(nn.Linear(2, 2), backend="eager"))
    expected = {"", "0", "1"}
    assert set(layer_names(inner).values()) == expected
    assert set(layer_names(torch.compile(inner, backend="eager")).values()) == expected


@pytest.mark.parametrize("compiled", [False, True])
def test_buffers_change_once_where_a_forward_is_repeated(compiled):
    norm = nn.BatchNorm1d(2)

    def block(x):
        once_per_forward(norm, lambda: norm.num_batches_tracked.add_(1))
        return x.sin()

    run = torch.compile(block, backend="eager", fullgraph=True) if compiled else block
    for number in (1, 2):
        checkpoint(run, torch.ones(2, requires_grad=True), use_reentrant=False).sum().backward()
        assert norm.num_batches_tracked == number
