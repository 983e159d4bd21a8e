import dataclasses
import json

import numpy as np
import pytest
import torch

from mixtura.errors import UserError
from mixtura.train.data import DataConfig, prepare
from mixtura.train.data.clusters import centres_of, features, nearest, split_at


def test_pairs_are_counted_wherever_they_stand():
    a, b = (features([np.array(ids, dtype="uint16")])[0] for ids in ([1, 2, 3, 1, 2], [3, 1, 2, 3]))
    assert a.count_nonzero() == b.count_nonzero() == 3
    assert torch.isclose(a.max(), torch.tensor(2.0).log1p())
    assert torch.equal(a > 0, b > 0)


def test_clusters_are_of_equal_size_and_of_one_kind():
    kinds = torch.eye(3).repeat_interleave(4, 0) + 0.01 * torch.rand(12, 3)
    weight, centre = centres_of(kinds, 3, seed=1)
    found = nearest(kinds, weight, centre).view(3, 4)
    assert all(row.unique().numel() == 1 for row in found)
    assert found[:, 0].unique().numel() == 3


def test_documents_are_whole():
    tokens = np.array([4, 4, 0, 5, 0, 6], dtype="uint16")
    assert [part.tolist() for part in split_at(tokens, 0)] == [[4, 4, 0], [5, 0], [6]]


@pytest.fixture
def config(tmp_path):
    """One domain whose documents are letters or numbers."""
    words = ["abc", "123"]
    texts = [f"{words[i % 2]} " * (20 + i % 5) + f"{i}" for i in range(80)]
    (tmp_path / "mixed.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    return DataConfig(
        path=str(tmp_path / "mixed.jsonl"), seq_len=16, batch_size=4, val_fraction=0.2, cache=str(tmp_path / "cache")
    )


def test_a_corpus_in_clusters_holds_the_same_text_and_finds_the_kinds(config):
    whole, parts = prepare(config), prepare(dataclasses.replace(config, clusters=2))
    assert parts.domains == ("cluster-0", "cluster-1")
    assert parts.folder != whole.folder
    for name in ("train", "val"):
        mine, theirs = getattr(whole, name)["mixed"], getattr(parts, name)
        assert sum(map(len, theirs.values())) == len(mine)
        texts = {domain: parts.tokenizer.decode(ids.tolist()) for domain, ids in theirs.items()}
        assert sorted(("abc" in text, "123 123" in text) for text in texts.values()) == [(False, True), (True, False)]
    assert sum(row.train_mb for row in parts.rows) == pytest.approx(sum(row.train_mb for row in whole.rows))
    again = prepare(dataclasses.replace(config, clusters=2, domains=("cluster-1",)))
    assert again.domains == ("cluster-1",)
    assert again.folder == parts.folder


def test_numbers_of_clusters_that_cannot_be(config):
    with pytest.raises(UserError, match=r"data\.clusters: expected 0 or at least 2, got 1"):
        dataclasses.replace(config, clusters=1)
    with pytest.raises(UserError, match=r"data\.clusters: expected at most 6\d \(documents\), got 500"):
        prepare(dataclasses.replace(config, clusters=500))
    with pytest.raises(UserError, match=r"got none in number \d+; take fewer, or raise --data\.val_fraction"):
        prepare(dataclasses.replace(config, clusters=40))
