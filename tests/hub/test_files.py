"""Shards: sizes, names, index; one at a time in memory."""

import json

import torch

from mixtura.hub import files
from mixtura.hub.files import INDEX, SINGLE, read_tensors, write_tensors


def test_shards_are_cut_by_size_and_read_back(tmp_path):
    tensors = {f"t{i}": torch.full((10 * (i + 1),), float(i)) for i in range(5)}  # 40, 80, 120, 160, 200 bytes
    written = write_tensors(tmp_path, tensors.items, max_shard_bytes=250)
    assert [path.name for path in written] == [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    index = json.loads((tmp_path / INDEX).read_text())
    assert index["metadata"]["total_size"] == 600
    assert list(index["weight_map"].values()) == [
        path.name for path in written for _ in range({0: 3, 1: 1, 2: 1}[written.index(path)])
    ]
    again = dict(read_tensors(tmp_path))
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[name], value) for name, value in tensors.items())


def test_a_single_file_needs_no_index(tmp_path):
    write_tensors(tmp_path, {"a": torch.zeros(3).bfloat16()}.items, max_shard_bytes=10**9)
    assert [path.name for path in tmp_path.iterdir()] == [SINGLE]
    assert dict(read_tensors(tmp_path))["a"].dtype is torch.bfloat16


def test_a_tensor_larger_than_a_shard_gets_its_own(tmp_path):
    tensors = {"small": torch.zeros(1), "large": torch.zeros(100), "tiny": torch.zeros(1)}
    assert len(write_tensors(tmp_path, tensors.items, max_shard_bytes=50)) == 3


def test_views_of_one_memory_are_written_apart(tmp_path):
    whole = torch.arange(6.0).view(2, 3)
    write_tensors(tmp_path, {"a": whole[0], "b": whole[0], "c": whole.T}.items, max_shard_bytes=10**9)
    again = dict(read_tensors(tmp_path))
    assert again["b"].tolist() == [0, 1, 2]
    assert again["c"].tolist() == [[0, 3], [1, 4], [2, 5]]


def test_no_more_than_one_shard_is_gathered(tmp_path, monkeypatch):
    """The stream stands still while a shard is written."""
    given: list[str] = []
    at_save: list[int] = []
    library = files._safetensors()
    save = library.torch.save_file

    def watched(tensors, *rest, **options):
        at_save.append(len(given))
        save(tensors, *rest, **options)

    def stream():
        given.clear()
        for i in range(4):
            given.append(f"t{i}")
            yield f"t{i}", torch.zeros(10)

    monkeypatch.setattr(library.torch, "save_file", watched)
    write_tensors(tmp_path, stream, max_shard_bytes=80)
    assert at_save == [2, 4]
