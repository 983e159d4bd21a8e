from datetime import timedelta

import pytest
from torch import distributed as dist

import mixtura as mx
from mixtura.train.config import MeshConfig
from mixtura.train.tasks.language import LanguageConfig
from mixtura.train.world import World, _meeting_place, processes, restarted


def test_alone_nothing_is_asked_of_others():
    world = World()
    assert world.is_first
    assert world.same("a") == "a"
    assert world.first(lambda: 3) == 3
    assert (world.any(True), world.any(False)) == (True, False)
    values = {"a": 1.0, "b": {"c": [1.0, 2.0]}}
    assert world.mean(values) is values


@pytest.mark.parametrize(("started", "mesh"), [("1", MeshConfig(dp=2, ep=2)), ("3", MeshConfig(dp=4))])
def test_another_number_of_processes(monkeypatch, started, mesh):
    monkeypatch.setenv("WORLD_SIZE", started)
    with (
        pytest.raises(mx.UserError, match=f"expected 4 processes for this mesh, got {started}; start with: torchrun"),
        processes(LanguageConfig(mesh=mesh)),
    ):
        pass


def test_torchrun_says_when_it_starts_again(monkeypatch):
    assert not restarted()
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "2")
    assert restarted()


def test_a_second_attempt_does_not_meet_the_addresses_of_the_first(monkeypatch):
    server = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    facts = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(server.port), "RANK": "1", "WORLD_SIZE": "2"}
    for name, value in {**facts, "TORCHELASTIC_USE_AGENT_STORE": "True"}.items():
        monkeypatch.setenv(name, value)
    places = []
    for attempt in ("0", "1", "1"):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", attempt)
        places.append(_meeting_place(timedelta(seconds=5)))
    assert [(place["rank"], place["world_size"]) for place in places] == [(1, 2)] * 3
    places[0]["store"].set("rank 0", "an old address")
    places[1]["store"].set("rank 1", "a new address")
    assert not places[1]["store"].check(["rank 0"])
    assert places[2]["store"].get("rank 1") == b"a new address"


def test_without_torchrun_the_ranks_meet_as_torch_says(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    assert _meeting_place(timedelta(seconds=5)) == {}
