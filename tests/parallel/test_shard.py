"""What cannot be put on a mesh is refused with the reason; what can is compared in tests/distributed."""

import pytest
import torch
from torch import distributed as dist
from torch import nn

import mixtura as mx
from mixtura.parallel.balance import Placement
from mixtura.parallel.mesh import make_mesh, one_process
from mixtura.parallel.shard import parallelize, units
from tests.distributed.pool import world


def build(*, num=4, hidden=8, dim=8, bias=False, modules=False, losses=None):
    experts = mx.GroupedMLP(num_experts=num, dim=dim, hidden=hidden, bias=bias)
    if modules:
        experts = mx.ModuleExperts([nn.Linear(dim, dim) for _ in range(num)])
    return nn.Sequential(
        nn.Linear(dim, dim), mx.MoE(router=mx.routers.TopK(dim, num, 2), experts=experts, losses=losses)
    )


def put(mesh, options, given=None):
    parallelize(build(**options), make_mesh(**mesh), **(given or {}))


@pytest.mark.parametrize(
    ("mesh", "options", "message"),
    [
        ({"ep": 4}, {"num": 6}, "got ep=4, where 2 each leave none of the 6 for the last; choose an ep that divides 6"),
        ({"ep": 4}, {"num": 3}, "expected ep of at most E=3, or a multiple of it without fsdp, got ep=4 with fsdp=1"),
        (
            {"fsdp": 2, "ep": 2},
            {"dim": 7},
            "expected experts that fsdp=2 can cut along dimension 1",
        ),
        ({"tp": 4}, {"hidden": 6}, "expected a hidden width that tp=4 divides, got 6"),
        ({"ep": 2, "tp": 2}, {"modules": True}, "expected GroupedMLP in layer 1, whose hidden width tp can cut"),
        ({"fsdp": 2, "tp": 2}, {"bias": True}, "expected experts that fsdp=2 can cut along dimension 2 in layer 1"),
        ({"ep": 4}, {"losses": {"orthogonality": 1.0}}, "'orthogonality': it needs all experts"),
        ({"ep": 2}, {}, "expected a mesh of 4 ranks, got ep=2 = 2; sizes multiply to the world size"),
    ],
    ids=str,
)
def test_refused_with_the_reason(mesh, options, message):
    for kind, error in world(4).outcomes(put, mesh, options):
        assert (kind, error[0]) == ("error", "UserError"), error
        assert message in error[1]
        assert "\n" not in error[1]


HALVES = Placement(experts=((0, 1), (2, 3)), loads=(1.0, 1.0))


@pytest.mark.parametrize(
    ("mesh", "options", "given", "message"),
    [
        ({"ep": 2}, {}, {"node_size": 4}, "expected a node_size that divides ep=2, got 4"),
        ({"dp": 2}, {}, {"placement": {"1": HALVES}}, "expected a mesh with ep for a placement of experts, got ep=1"),
        ({"ep": 2}, {}, {"placement": {"0": HALVES}}, "expected placements of the layers 1, got one of '0'"),
        ({"ep": 2}, {"modules": True}, {"placement": {"1": HALVES}}, "to place in layer 1, got ModuleExperts"),
        (
            {"ep": 2},
            {"num": 6},
            {"placement": {"1": HALVES}},
            "a placement of 6 experts on 2 ranks in layer 1, got 4 on 2",
        ),
    ],
    ids=str,
)
def test_refused_ways_and_placements(mesh, options, given, message):
    for kind, error in world(2).outcomes(put, mesh, options, given):
        assert (kind, error[0]) == ("error", "UserError"), error
        assert message in error[1]


def twice():
    model = parallelize(build(), make_mesh(ep=2))
    parallelize(model, make_mesh(ep=2))


def without_mixtures():
    parallelize(nn.Linear(2, 2), make_mesh(ep=2))


def other_models():
    parallelize(build(num=4 + 2 * dist.get_rank()), make_mesh(ep=2))


def other_capacities():
    model = build()
    model[1].capacity = mx.Capacity(factor=1.0 + dist.get_rank())
    parallelize(model, make_mesh(dp=2))


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (twice, "expected experts on one rank in layer 1, got experts that are spread already"),
        (without_mixtures, "expected a model with mx.MoE layers for ep, got none; use dp or fsdp"),
        (
            other_models,
            "expected the same model on every rank, got 1.router.weight: (4, 8) torch.float32 on rank 0 and",
        ),
        (other_capacities, "expected the same model on every rank, got 1 (layer): capacity=Capacity(factor=1.0)"),
    ],
)
def test_refused_models(case, message):
    for kind, error in world(2).outcomes(case):
        assert (kind, error[0]) == ("error", "UserError"), error
        assert message in error[1]


def first_weights():
    torch.manual_seed(dist.get_rank())
    model = build()
    model.register_buffer("kept", torch.tensor([float(dist.get_rank())]))
    expected = [p.detach().clone() for p in model.parameters()]
    parallelize(model, make_mesh(ep=2))
    return [p.full_tensor().tolist() for p in model.parameters()], [p.tolist() for p in expected], model.kept.item()


def test_the_first_ranks_weights_count():
    first, second = world(2).run(first_weights)
    assert first[0] == first[1] == second[0] != second[1]
    assert second[2] == 0


def test_units_are_the_children_of_the_outermost_lists():
    model = build()
    assert units(model) == [model[0], model[1]]
    inside = nn.ModuleDict({"blocks": nn.ModuleList([build(), nn.ReLU()]), "head": nn.Linear(8, 8)})
    assert units(inside) == [inside["blocks"][0]]


def test_a_unit_that_shares_a_weight_stays_with_the_rest():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    assert units(model) == [model[1]]


def test_one_process_needs_no_mesh_of_its_own():
    with one_process():
        model = build()
        x = torch.randn(3, 8)
        expected = model(x)
        torch.testing.assert_close(parallelize(model, make_mesh())(x), expected)
