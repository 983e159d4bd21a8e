"""Every layout, router and dispatch gives the losses, gradients and parameters of one process."""

import numpy as np
import pytest

from mixtura.parallel.balance import Placement
from mixtura.parallel.tensor import unit_order
from tests.contracts.cases import ROUTERS
from tests.distributed.cases import EVEN, Case, assert_equal, merged, train
from tests.distributed.pool import world

TOKENS = {1: (12,), 2: (9, 14), 4: (9, 14, 0, 5)}
LAYOUTS = [
    {"dp": 1},
    {"dp": 2},
    {"ep": 2},
    {"fsdp": 2},
    {"ep": 4},
    {"dp": 4},
    {"fsdp": 4},
    {"dp": 2, "ep": 2},
    {"fsdp": 2, "ep": 2},
    {"dp": 2, "fsdp": 2},
]


def size(mesh):
    product = 1
    for axis in mesh.values():
        product *= axis
    return product


def check(case):
    tp = case.mesh.get("tp", 1)
    found = merged(world(size(case.mesh)).run(train, case), tp=tp)
    if tp > 1:  # units are reordered then
        order = unit_order(8, parts=tp, gated=case.experts == "swiglu").argsort().numpy()
        for named in (*found["grads"], found["parameters"]):
            named |= {name: value[:, order] for name, value in named.items() if ".experts.up" in name}
    for layer, placement in case.options.get("placement", {}).items():
        gather_copies(found, layer, placement)
    assert_equal(found, train(case.alone()))


def gather_copies(found, layer, placement):
    """Experts in their own order, once each; all copies of one have been equal."""
    first = [placement.order.index(expert) for expert in range(max(placement.order) + 1)]
    for named in (*found["grads"], found["parameters"]):
        for name, value in named.items():
            if name.startswith(f"{layer}.experts."):
                np.testing.assert_array_equal(value, value[first][list(placement.order)], err_msg=name)
                named[name] = value[first]


def name_of(mesh):
    return " ".join(f"{axis}{size}" for axis, size in mesh.items())


@pytest.mark.parametrize("experts", ["gelu with bias", "modules"])
@pytest.mark.parametrize("mesh", LAYOUTS, ids=name_of)
def test_layouts(mesh, experts):
    num = 7 if mesh.get("ep") == 4 else 6 if mesh.get("fsdp") or experts == "modules" else 5
    if mesh == {"fsdp": 2, "ep": 2} and experts != "modules":
        experts = "swiglu"  # a hidden width of 7 cannot be cut
    check(Case(mesh=mesh, tokens=TOKENS[size(mesh)], experts=experts, num=num, shared=True))


@pytest.mark.parametrize(
    ("mesh", "experts"),
    [
        ({"tp": 2}, "swiglu"),
        ({"tp": 2}, EVEN),
        ({"ep": 2, "tp": 2}, "swiglu"),
        ({"ep": 2, "tp": 2}, EVEN),
        ({"dp": 2, "tp": 2}, EVEN),
        ({"fsdp": 2, "tp": 2}, "swiglu"),
    ],
    ids=str,
)
def test_hidden_width_cut(mesh, experts):
    check(Case(mesh=mesh, tokens=TOKENS[size(mesh) // mesh["tp"]], experts=experts))


@pytest.mark.parametrize("policy", ["drop", "priority", "reroute"])
@pytest.mark.parametrize("mesh", [{"dp": 2, "ep": 2}, {"tp": 2}], ids=name_of)
def test_capacity(mesh, policy):
    check(Case(mesh=mesh, tokens=TOKENS[size(mesh) // mesh.get("tp", 1)], policy=policy))


@pytest.mark.parametrize("router", sorted(set(ROUTERS) - {"topk"}))
def test_routers(router):
    check(Case(mesh={"ep": 2}, tokens=TOKENS[2], router=router))


@pytest.mark.parametrize(
    "mesh", [{"ep": 2}, {"ep": 4}, {"dp": 2, "ep": 2}, {"fsdp": 2, "ep": 2}, {"ep": 2, "tp": 2}], ids=name_of
)
def test_all_tokens_to_one_rank(mesh):
    tokens = TOKENS[size(mesh) // mesh.get("tp", 1)]
    check(Case(mesh=mesh, tokens=tokens, router="switch", focus=2.0, num=7 if mesh == {"ep": 4} else 4))


@pytest.mark.parametrize("tokens", [(0, 9), (0, 1), (5, 0)])
def test_a_rank_without_tokens(tokens):
    check(Case(mesh={"ep": 2}, tokens=tokens, router="switch", experts="modules"))


@pytest.mark.parametrize("num", [2, 3, 4, 7])
def test_numbers_of_experts(num):
    """Several on each rank, one, and a last rank with fewer."""
    mesh = {"ep": 2 if num == 2 else 4} if num != 3 else {"ep": 2}
    check(Case(mesh=mesh, tokens=TOKENS[size(mesh)], num=num))


def test_replicas():
    """More ranks than experts: two groups of two."""
    check(Case(mesh={"ep": 4}, tokens=TOKENS[4], num=2))


PLACED = {
    "blocks.0.mixture": Placement(experts=((0, 2, 4), (1, 2, 3)), loads=(1.0, 1.0)),
    "blocks.1.mixture": Placement(experts=((0, 1, 3, 4), (0, 2, 3, 4)), loads=(1.0, 1.0)),
}


@pytest.mark.parametrize("options", [{}, {"chunks": 2}, {"accumulate": True}], ids=str)
@pytest.mark.parametrize("mesh", [{"ep": 2}, {"dp": 2, "ep": 2}, {"ep": 2, "tp": 2}, {"fsdp": 2, "ep": 2}], ids=name_of)
def test_experts_placed_by_load_with_copies(mesh, options):
    tokens = TOKENS[size(mesh) // mesh.get("tp", 1)]
    parts = 2 if options.get("accumulate") else 1
    options = {"placement": PLACED} | {name: value for name, value in options.items() if name != "accumulate"}
    check(Case(mesh=mesh, tokens=tokens, options=options, passes=parts))


@pytest.mark.parametrize("options", [{}, {"chunks": 2}, {"payload": None}], ids=str)
def test_rows_through_the_node(options):
    check(Case(mesh={"ep": 4}, tokens=TOKENS[4], num=7, shared=True, options={"node_size": 2, **options}))


def test_rows_through_the_node_to_copies():
    placement = {"blocks.0.mixture": Placement(experts=((0, 1), (2, 1), (4, 3), (5, 6)), loads=(1.0,) * 4)}
    check(Case(mesh={"ep": 4}, tokens=TOKENS[4], num=7, options={"node_size": 2, "placement": placement}))


@pytest.mark.parametrize("chunks", [2, 4, "auto"])
def test_chunks(chunks):
    check(Case(mesh={"ep": 2}, tokens=TOKENS[2], shared=True, options={"chunks": chunks}, policy="drop"))


@pytest.mark.parametrize("router", ["topk", "sigmoid_bias"])
def test_whole_experts_in_plain_ddp(router):
    check(Case(mesh={"dp": 2}, tokens=TOKENS[2], router=router, shared=True, ddp=True))


def test_adamw():
    check(Case(mesh={"dp": 2, "ep": 2}, tokens=TOKENS[4], optimizer="adamw"))


def test_bias_of_loads():
    """The bias follows the counts of all ranks."""
    check(Case(mesh={"dp": 2, "ep": 2}, tokens=TOKENS[4], router="sigmoid_bias", losses={}))
