"""The exchange of rows: values, gradients, bytes on the wire, and what happens when a rank is not there."""

import os
import signal
from contextlib import contextmanager

import pytest
import torch
from torch import distributed as dist

import mixtura as mx
from mixtura.parallel.collective import Exchange, Plan, _decode, _encode, check_payload
from mixtura.parallel.expert import ExpertParallel
from mixtura.parallel.mesh import make_mesh
from tests.distributed.pool import Pool, world

# How many rows each rank sends to each: rank 0 nothing to itself, rank 1 nothing at all to rank 0.
SENT = [[0, 3], [0, 2]]


def swapped(payload):
    rank = dist.get_rank()
    received = [SENT[sender][rank] for sender in range(2)]
    plan = Plan(sent=tuple(SENT[rank]), received=tuple(received), group=dist.group.WORLD, layer="mlp", payload=payload)
    x = (torch.arange(sum(SENT[rank]) * 2.0).view(-1, 2) + 10 * rank).requires_grad_()
    weight = torch.full((sum(SENT[rank]),), 1.0 + rank, requires_grad=True)
    came, weights = Exchange(plan, x, weight).wait()
    (came * came * weights.unsqueeze(1)).sum().backward()
    return came.tolist(), weights.tolist(), x.grad.tolist(), weight.grad.tolist()


@pytest.mark.parametrize("payload", [None, "bf16"])
def test_rows_go_and_gradients_return(payload):
    first, second = world(2).run(swapped, payload)
    rows = [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]
    own = [[10.0, 11.0], [12.0, 13.0]]
    assert first[:2] == ([], [])
    assert second[:2] == (rows + own, [1.0] * 3 + [2.0] * 2)
    assert first[2] == [[2 * a, 2 * b] for a, b in rows]
    assert second[2] == [[4 * a, 4 * b] for a, b in own]
    assert first[3] == [a * a + b * b for a, b in rows]


def test_fp8_rows_keep_three_bits():
    (_, second) = world(2).run(swapped, "fp8")
    exact = world(2).run(swapped, None)[1]
    torch.testing.assert_close(torch.tensor(second[0]), torch.tensor(exact[0]), rtol=2**-4, atol=1e-6)
    torch.testing.assert_close(torch.tensor(second[2]), torch.tensor(exact[2]), rtol=2**-3, atol=1e-6)


@pytest.mark.parametrize("rows", [0, 1, 3])
@pytest.mark.parametrize("payload", [None, "bf16", "fp8"])
def test_any_strides_travel(rows, payload):
    x = torch.randn(rows, 4)
    for y in (x, x[:, :1].expand(rows, 4), x.T.contiguous().T, torch.zeros(rows, 4)):
        found = _decode(_encode(y, payload), y.dtype, payload)
        torch.testing.assert_close(found, y, rtol=0 if payload is None else 2**-4, atol=1e-6)


def test_unknown_payload():
    with pytest.raises(mx.UserError, match="expected a payload among None, bf16, fp8, got 'int3'"):
        check_payload("int3")


@contextmanager
def counting():
    """Count the bytes that this rank sends to others, each tensor's rows in `rows` and small counts in `counts`."""
    sent = {"rows": 0, "counts": 0}
    original = dist.all_to_all_single

    def counted(out, wire, out_splits=None, in_splits=None, *, group=None, async_op=False):
        me = dist.get_rank(group)
        parts = wire.chunk(dist.get_world_size(group)) if in_splits is None else wire.split(in_splits)
        kind = "counts" if in_splits is None else "rows"
        sent[kind] += sum(part.nbytes for rank, part in enumerate(parts) if rank != me)
        return original(out, wire, out_splits, in_splits, group=group, async_op=async_op)

    dist.all_to_all_single = counted
    try:
        yield sent
    finally:
        dist.all_to_all_single = original


def bytes_of_a_step(payload):
    torch.manual_seed(3)
    router = mx.routers.TopK(8, num_experts=6, k=2)
    torch.nn.init.normal_(router.weight)
    layer = mx.MoE(router=router, experts=mx.GroupedMLP(num_experts=6, dim=8, hidden=4))
    mesh = make_mesh(ep=2)["ep"]
    layer.experts = ExpertParallel(layer.experts, mesh, payload=payload)
    x = torch.randn(5 + 6 * dist.get_rank(), 8, generator=torch.Generator().manual_seed(dist.get_rank()))
    with mx.record(layer) as log, counting() as sent:
        layer(x.requires_grad_()).sum().backward()
    counts_E = log[""][0].counts_E()
    elsewhere = counts_E[3:] if dist.get_rank() == 0 else counts_E[:3]
    return sent, int(elsewhere.sum())


@pytest.mark.parametrize(("payload", "width"), [(None, 4 * 8), ("bf16", 2 * 8), ("fp8", 8 + 4)])
def test_bytes_are_those_of_the_routing(payload, width):
    """Of a row that leaves its rank x goes and y returns, then dy goes and dx returns; its weight goes, and dw back."""
    found = world(2).run(bytes_of_a_step, payload)
    away = sum(rows for _, rows in found)
    assert away > 0
    assert sum(sent["rows"] for sent, _ in found) == away * (4 * width + 2 * 4)
    assert [sent["counts"] for sent, _ in found] == [(3 + 2) * 8] * 2


def exchange_or_not():
    group = dist.group.WORLD
    plan = Plan(sent=(1, 1), received=(1, 1), group=group, layer="blocks.3")
    if dist.get_rank() == 0:
        Exchange(plan, torch.zeros(2, 1)).wait()


def test_a_rank_that_does_not_come_is_an_error_and_no_hang():
    pool = Pool(2, timeout=3)
    try:
        (kind, error), _ = pool.outcomes(exchange_or_not)
        assert (kind, error[0]) == ("error", "RankError")
        assert error[1].startswith("rank 0 of 2, layer blocks.3: exchange of rows with ranks [0, 1] failed: ")
        assert error[1].endswith("a rank of the group died, skipped this layer, or is slower than the group's time-out")
    finally:
        pool.close()


def exchange_or_die():
    plan = Plan(sent=(1, 1), received=(1, 1), group=dist.group.WORLD, layer="blocks.3")
    Exchange(plan, torch.zeros(2, 1)).wait()
    if dist.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    Exchange(plan, torch.zeros(2, 1)).wait()


def test_a_rank_that_dies_is_an_error_of_the_others():
    pool = Pool(2, timeout=10)
    try:
        (kind, error), second = pool.outcomes(exchange_or_die)
        assert second == ("gone", None)
        assert (kind, error[0]) == ("error", "RankError")
        assert error[1].startswith("rank 0 of 2, layer blocks.3: exchange of rows with ranks [0, 1] failed: ")
    finally:
        pool.close()
