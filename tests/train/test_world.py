import pytest

import mixtura as mx
from mixtura.train.config import MeshConfig
from mixtura.train.tasks.language import LanguageConfig
from mixtura.train.world import World, processes, restarted


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
