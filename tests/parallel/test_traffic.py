"""Ways of rows: parts of counts, and the way through the own node beside the straight one."""

from contextlib import contextmanager

import pytest
import torch
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh

import mixtura as mx
from mixtura.parallel.expert import ExpertParallel
from mixtura.parallel.mesh import make_mesh, one_process
from mixtura.parallel.traffic import Road, part
from tests.distributed.pool import world


def test_parts_add_up():
    for count in range(20):
        for parts in (1, 2, 3, 4):
            assert sum(part(count, number, parts) for number in range(parts)) == count


@contextmanager
def counting():
    """What this rank sends to others: bytes of rows and messages, to ranks of its own node of two and to the other."""
    sent = {"inside": 0, "between": 0, "messages between": 0}
    original = dist.all_to_all_single

    def counted(out, wire, out_splits=None, in_splits=None, *, group=None, async_op=False):
        me, ranks = dist.get_rank(), dist.get_process_group_ranks(group)
        parts = [] if in_splits is None else wire.split(in_splits)
        for rank, rows in zip(ranks, parts, strict=False):
            where = "inside" if rank // 2 == me // 2 else "between"
            sent[where] += rows.nbytes if rank != me else 0
            sent["messages between"] += where == "between"
        return original(out, wire, out_splits, in_splits, group=group, async_op=async_op)

    dist.all_to_all_single = counted
    try:
        yield sent
    finally:
        dist.all_to_all_single = original


def both_ways(num, chunks):
    """Outputs, gradients and traffic of one layer on four ranks, straight and by nodes of two."""
    rank, found = dist.get_rank(), []
    nodes = init_device_mesh("cpu", (2, 2), mesh_dim_names=("nodes", "local"))
    mesh = make_mesh(ep=4)["ep"]
    for way in (None, nodes):
        torch.manual_seed(3)
        layer = mx.MoEConfig(dim=8, hidden=4, num_experts=num, k=2, router="topk").build()
        torch.nn.init.normal_(layer.router.weight)
        layer.experts = ExpertParallel(layer.experts, mesh, nodes=way, chunks=chunks)
        T = (5, 11, 0, 8)[rank]
        x = torch.randn(T, 8, generator=torch.Generator().manual_seed(rank)).requires_grad_()
        with mx.record(layer) as log, counting() as sent:
            y = layer(x)
            y.square().sum().backward()
        grads = {name: getattr(p.grad, "_local_tensor", p.grad) for name, p in layer.named_parameters()}
        found.append((y.detach(), x.grad, grads, dict(sent)))
    elsewhere = log[""][0].counts_E()[:8].view(2, -1)[1 - rank // 2].sum().item() if num == 8 else None
    *first, straight = found[0]
    *second, by_node = found[1]
    torch.testing.assert_close(second, first, rtol=0, atol=0)
    return straight, by_node, elsewhere


@pytest.mark.parametrize(("num", "chunks"), [(8, 1), (8, 2), (7, 1), (4, 4)])
def test_through_the_node_nothing_changes_but_the_number_of_messages(num, chunks):
    found = world(4).run(both_ways, num, chunks)
    for straight, by_node, _ in found:
        # A chunk's rows and weights go and come back, then so do their gradients: 2 + 1 + 1 + 2 tensors.
        assert straight["messages between"] == 2 * by_node["messages between"] == 2 * 6 * chunks
    between = [sum(sent["between"] for sent in side) for side in list(zip(*found, strict=True))[:2]]
    assert between[0] == between[1] > 0
    if num == 8:  # of each row that leaves its node x and y cross, dy and dx, the weight and its gradient
        assert between[1] == sum(rows for *_, rows in found) * (4 * 4 * 8 + 2 * 4)


def test_other_ranks_than_those_of_the_nodes_are_refused():
    with one_process():
        mesh = make_mesh()
        with pytest.raises(mx.UserError, match="expected nodes as a mesh of two dimensions with the ranks"):
            Road(mesh=mesh["ep"], nodes=mesh["tp"])
