"""Experts on other ranks: what the layer around sees, and what ranks that do different things are told."""

import pytest
import torch
from torch import distributed as dist
from torch import nn

import mixtura as mx
from mixtura.parallel.expert import ExpertParallel, received_rows
from mixtura.parallel.mesh import make_mesh, one_process
from tests.distributed.pool import world


def test_received_rows_are_grouped_and_put_back():
    counts = torch.tensor([[1, 2], [0, 1], [2, 0]])
    x = torch.arange(6.0).unsqueeze(1)
    rows = received_rows(x, x.squeeze(1), counts)
    assert rows.gather().flatten().tolist() == [0, 4, 5, 1, 2, 3]
    assert rows.weight_N.tolist() == [0, 4, 5, 1, 2, 3]
    assert rows.counts_E.tolist() == [3, 3]
    assert rows.combine(rows.gather()).tolist() == x.tolist()


@pytest.mark.parametrize(
    ("experts", "options", "message"),
    [
        (
            mx.GroupedMLP(num_experts=1, dim=2, hidden=2),
            {"chunks": 0},
            'expected chunks of at least 1, or "auto", got 0',
        ),
        (mx.GroupedMLP(num_experts=1, dim=2, hidden=2), {"payload": "x"}, "expected a payload among None, bf16, fp8"),
        (nn.Linear(2, 2), {}, "expected at most as many ranks as experts, got 1 ranks for 0 experts"),
    ],
)
def test_bad_arguments(experts, options, message):
    with one_process(), pytest.raises(mx.UserError, match=message):
        ExpertParallel(experts, make_mesh()["ep"], **options)


def test_a_mesh_of_one_dimension():
    experts = mx.GroupedMLP(num_experts=1, dim=2, hidden=2)
    with one_process(), pytest.raises(mx.UserError, match="expected a mesh of one dimension"):
        ExpertParallel(experts, make_mesh()["dp", "ep"])


def test_names_stay():
    grouped = mx.GroupedMLP(num_experts=2, dim=2, hidden=2, bias=True)
    modules = mx.ModuleExperts([nn.Linear(2, 2), nn.Linear(2, 2)])
    names = [[*dict(experts.named_parameters())] for experts in (grouped, modules)]
    with one_process():
        mesh = make_mesh()["ep"]
        assert [[*dict(ExpertParallel(e, mesh).named_parameters())] for e in (grouped, modules)] == names


def wider():
    """All tokens go to the first rank; the second must know how wide what it does not compute would be."""
    torch.manual_seed(0)
    experts = mx.ModuleExperts([nn.Linear(4, 7) for _ in range(4)])
    layer = mx.MoE(router=mx.routers.Switch(4, num_experts=4), experts=experts)
    nn.init.zeros_(layer.router.weight)
    x = torch.randn(6, 4)
    expected = layer(x)
    layer.experts = ExpertParallel(experts, make_mesh(ep=2)["ep"], dim_out=7)
    torch.testing.assert_close(layer(x), expected)


def test_experts_of_another_width():
    world(2).run(wider)


def test_experts_of_another_width_that_nobody_told():
    experts = mx.ModuleExperts([nn.Linear(4, 7)])
    layer = mx.MoE(router=mx.routers.Dense(4, num_experts=1), experts=experts)
    with one_process():
        layer.experts = ExpertParallel(experts, make_mesh()["ep"])
        with pytest.raises(mx.UserError, match="expected experts that give rows of width 4, got 7 in layer experts"):
            layer(torch.zeros(2, 4))


def differ(what):
    """Rank 1 does something else than rank 0 in the second layer."""
    torch.manual_seed(0)
    mesh = make_mesh(ep=2)["ep"]
    layers = []
    for name in ("first", "second"):
        layer = mx.MoEConfig(dim=4, hidden=4, num_experts=2, k=1, router="switch", capacity_factor=1.0).build()
        layer.experts = ExpertParallel(layer.experts, mesh, layer=name, state=lambda layer=layer: str(layer.capacity))
        layers.append(layer)
    x, odd = torch.randn(4, 4), dist.get_rank() == 1
    if what == "capacity" and odd:
        layers[1].capacity = mx.Capacity(factor=2.0)
    if what == "dtype" and odd:
        layers[1].double()
        x = x.double()
        layers[0].double()
    if what == "skips":
        layers = layers[1:] if odd else layers
    if what == "graph" and odd:
        x.requires_grad_()
    for layer in layers:
        x = layer(x)


@pytest.mark.parametrize(
    ("what", "layers"),
    [("capacity", ("second", "second")), ("skips", ("first", "second")), ("graph", ("first", "first"))],
)
def test_ranks_that_differ_are_told_so(what, layers):
    for rank, (kind, error) in enumerate(world(2).outcomes(differ, what)):
        assert (kind, error[0]) == ("error", "UserError"), error
        assert error[1].startswith(f"expected every rank in layer {layers[rank]} with ")
        assert (
            f"of rank {rank}'s group the ranks [{1 - rank}] are in another layer or have another capacity" in error[1]
        )


def recomputed():
    torch.manual_seed(0)
    layer = mx.MoEConfig(dim=4, hidden=4, num_experts=4, k=2, router="topk").build()
    layer.experts = ExpertParallel(layer.experts, make_mesh(ep=2)["ep"], chunks=2)
    x = torch.randn(5 * dist.get_rank(), 4, requires_grad=True)
    plain = torch.autograd.grad(layer(x).square().sum(), [x, layer.router.weight])
    again = torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=False)
    for found, expected in zip(torch.autograd.grad(again.square().sum(), [x, layer.router.weight]), plain, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_recomputed_activations():
    world(2).run(recomputed)


def compiled():
    """Outputs and gradients of a compiled model around spread experts, on two numbers of tokens; and its graphs."""
    torch.manual_seed(0)
    layer = mx.MoEConfig(dim=4, hidden=4, num_experts=4, k=2, router="topk").build()
    layer.experts = ExpertParallel(layer.experts, make_mesh(ep=2)["ep"])
    model, graphs = nn.Sequential(nn.Linear(4, 4), layer, nn.Linear(4, 4)), []

    def count(graph, _):
        graphs.append(graph)
        return graph.forward

    for T in (5, 8):
        x = torch.randn(T + dist.get_rank(), 4)
        expected = torch.autograd.grad(model(x).square().sum(), list(model[0].parameters()))
        found = torch.autograd.grad(torch.compile(model, backend=count)(x).square().sum(), list(model[0].parameters()))
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    return len(graphs)


def test_a_compiled_model_is_cut_at_the_exchange():
    assert all(graphs >= 2 for graphs in world(2).run(compiled))
