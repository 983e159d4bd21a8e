import time

import pytest
import torch
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh

import mixtura as mx
from mixtura.parallel.mesh import AXES, complete, make_mesh, meeting_place, one_process
from tests.distributed.pool import Pool, world


def refused(kind, **sizes):
    with pytest.raises(mx.UserError) as caught:
        kind(**sizes)
    return str(caught.value)


def test_without_processes():
    assert refused(make_mesh).startswith("expected a process group, got none; start with torchrun")


def test_sizes_multiply_to_the_world():
    with one_process():
        assert refused(make_mesh, dp=2, ep=2) == (
            "expected a mesh of 1 ranks, got dp=2 * ep=2 = 4; sizes multiply to the world size"
        )
        assert refused(make_mesh, tp=0) == "expected mesh axes of at least 1, got tp=0"
        assert make_mesh().mesh_dim_names == AXES


def waited(seconds):
    mesh = make_mesh(ep=2, timeout=seconds)
    if mesh.get_rank() == 0:
        return 0.0
    began = time.monotonic()
    with pytest.raises(RuntimeError, match=r"(?i)timed out|timeout"):
        dist.all_reduce(torch.ones(1), group=mesh.get_group("ep"))
    return time.monotonic() - began


def test_no_rank_waits_longer_than_it_was_told():
    pool = Pool(2)  # of its own, since the group is of no use afterwards
    try:
        assert 0.5 < pool.run(waited, 1.0)[1] < 30
    finally:
        pool.close()


def completed(shape, names):
    mesh = complete(init_device_mesh("cpu", shape, mesh_dim_names=names))
    return tuple(mesh.shape), mesh["ep"].mesh.tolist(), mesh["dp"].mesh.tolist()


def test_missing_axes_have_size_one():
    found = world(4).run(completed, (2, 2), ("dp", "ep"))
    assert found[0] == ((2, 1, 2, 1), [0, 1], [0, 2])
    assert found[3] == ((2, 1, 2, 1), [2, 3], [1, 3])


@pytest.mark.parametrize(
    ("shape", "names", "message"),
    [
        ((2,), ("pp",), "expected a mesh with axes among dp, fsdp, ep, tp, got ['pp']"),
        ((2,), None, "expected a mesh with axes among dp, fsdp, ep, tp, got no names"),
        ((1, 2), ("ep", "dp"), "expected the axes in the order dp, fsdp, ep, tp, got ep, dp"),
    ],
)
def test_illegal_meshes(shape, names, message):
    for kind, error in world(2).outcomes(completed, shape, names):
        assert (kind, *error[:2]) == ("error", "UserError", message)


def test_a_second_attempt_does_not_meet_the_addresses_of_the_first(monkeypatch):
    server = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    facts = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(server.port), "RANK": "1", "WORLD_SIZE": "2"}
    for name, value in {**facts, "TORCHELASTIC_USE_AGENT_STORE": "True"}.items():
        monkeypatch.setenv(name, value)
    places = []
    for attempt in ("0", "1", "1"):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", attempt)
        places.append(meeting_place(timeout=5))
    assert [(place["rank"], place["world_size"]) for place in places] == [(1, 2)] * 3
    places[0]["store"].set("rank 0", "an old address")
    places[1]["store"].set("rank 1", "a new address")
    assert not places[1]["store"].check(["rank 0"])
    assert places[2]["store"].get("rank 1") == b"a new address"


def test_without_torchrun_the_ranks_meet_as_torch_says(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    assert meeting_place(timeout=5) == {}
