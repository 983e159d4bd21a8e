from types import SimpleNamespace

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from mixtura.train.data.chunks import ChunkStream, cut, in_order
from mixtura.train.data.documents import embedded_sources

END = 0
CORPUS = SimpleNamespace(folder=SimpleNamespace(name="tokens"))


def tokens(documents):
    return np.array([token for document in documents for token in [*document, END]], dtype="uint16")


texts = st.lists(st.lists(st.integers(1, 99), max_size=9), min_size=1, max_size=6)


@given(a=texts, b=texts, seq_len=st.integers(1, 5))
def test_chunks_are_the_documents_in_order_and_keep_their_label(a, b, seq_len):
    chunks = cut({"a": tokens(a), "b": tokens(b)}, end_id=END, seq_len=seq_len)
    expected = [
        (label, document[start : start + seq_len])
        for label, documents in enumerate((a, b))
        for document in documents
        for start in range(0, len(document), seq_len)
    ]
    found = []
    for row in range(len(chunks.places)):
        batch = chunks.batch(torch.tensor([row]))
        assert batch.mask_BL.all()
        found.append((batch.labels_B.item(), batch.ids_BL[0].tolist()))
    assert found == expected


def test_short_chunks_are_padded_with_the_end():
    chunks = cut({"a": tokens([[1, 2, 3], [4]])}, end_id=END, seq_len=3)
    batch = chunks.batch(torch.tensor([1, 0]))
    assert batch.ids_BL.tolist() == [[4, END, END], [1, 2, 3]]
    assert batch.mask_BL.tolist() == [[True, False, False], [True] * 3]
    assert batch.to(torch.device("cpu")).labels_B.tolist() == [0, 0]


def test_a_limit_takes_chunks_from_everywhere():
    chunks = cut({"a": tokens([[n] for n in range(1, 11)]), "b": tokens([[7]])}, end_id=END, seq_len=3, at_most=5)
    assert [chunks.batch(torch.tensor([row])).ids_BL.item() for row in range(6)] == [1, 3, 5, 7, 9, 7]


def test_all_are_passed_once_in_an_epoch_and_in_order():
    chunks = cut({"a": tokens([[n] * n for n in range(1, 6)])}, end_id=END, seq_len=9)
    stream = ChunkStream(chunks, CORPUS, batch_size=2, seed=0)
    drawn = [label for _ in range(5) for label in next(stream).ids_BL[:, 0].tolist()]
    assert sorted(drawn[:5]) == sorted(drawn[5:]) == [1, 2, 3, 4, 5]
    assert stream.state_dict()["corpus"] == "tokens"
    assert [batch.ids_BL[:, 0].tolist() for batch in in_order(chunks, batch_size=3)] == [[1, 2, 3], [4, 5]]


def test_packages_of_the_library_are_told_apart():
    sources = embedded_sources(by="package").files
    domains = [source.domain for source in sources]
    assert {"asyncio", "email"} <= set(domains)
    assert min(map(domains.count, set(domains))) >= 12
    assert all(source.name.startswith(f"{source.domain}/") for source in sources)
    assert not any("test" in source.name.split("/")[:-1] for source in sources)
