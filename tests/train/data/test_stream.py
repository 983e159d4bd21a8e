import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mixtura.errors import UserError
from mixtura.train.data import Corpus, TextTokenizer, TokenStream, validation_batches

TOKENIZER = TextTokenizer.train([], vocab_size=257)
SIZES = st.lists(st.integers(2, 60), min_size=1, max_size=4).filter(lambda sizes: max(sizes) > 8)


def corpus_of(sizes):
    """Tokens that tell their domain and place: 10000 * domain + place."""
    parts = {f"d{i}": np.arange(size, dtype=np.uint32) + 10_000 * i for i, size in enumerate(sizes)}
    return Corpus(
        domains=tuple(parts),
        train=parts,
        val=parts,
        bytes_per_token=dict.fromkeys(parts, 1.0),
        tokenizer=TOKENIZER,
        folder=Path("fingerprint"),
        rows=(),
        report="",
    )


def stream_of(sizes, *, batch_size=4, seq_len=8, seed=0, **ranks):
    return TokenStream(corpus_of(sizes), batch_size=batch_size, seq_len=seq_len, seed=seed, **ranks)


def starts(batch):
    return batch.inputs_BL[:, 0].tolist()


def epoch_of(stream):
    """The first tokens of the windows of the epoch that begins now; batches must hold one window."""
    epoch, seen = stream.state_dict()["epoch"], []
    while stream.state_dict()["epoch"] == epoch:
        seen += starts(next(stream))
    return seen


@given(sizes=SIZES, seed=st.integers(0, 3))
def test_each_epoch_holds_every_window_from_its_offset_once(sizes, seed):
    stream = stream_of(sizes, batch_size=1, seed=seed)
    for _ in range(3):
        seen = sorted(epoch_of(stream))
        expected = []
        for domain, size in enumerate(sizes):
            here = [start - 10_000 * domain for start in seen if start // 10_000 == domain]
            if size > 8:
                assert 0 <= here[0] < 8
                expected += [10_000 * domain + start for start in range(here[0], size - 8, 8)]
        assert seen == expected


def test_a_batch_holds_windows_their_next_tokens_and_domains():
    batch = next(stream_of([500, 300]))
    assert batch.inputs_BL.shape == batch.targets_BL.shape == (4, 8)
    assert {tensor.dtype for tensor in (batch.inputs_BL, batch.targets_BL, batch.domain_B)} == {torch.int64}
    assert torch.equal(batch.targets_BL, batch.inputs_BL + 1)
    assert torch.equal(batch.inputs_BL, batch.inputs_BL[:, :1] + torch.arange(8))
    assert torch.equal(batch.domain_B, batch.inputs_BL[:, 0] // 10_000)


def test_domains_come_in_proportion_to_their_size_and_shuffled():
    stream = stream_of([8000, 2000], batch_size=1)
    seen = epoch_of(stream)
    assert len(seen) in range(1246, 1250)
    assert sum(start >= 10_000 for start in seen[:600]) == pytest.approx(120, abs=40)
    assert seen != epoch_of(stream)


def test_the_offset_of_the_windows_changes_with_the_epoch_and_the_order_with_the_seed():
    stream = stream_of([4000], batch_size=1)
    assert len({epoch_of(stream)[0] % 8 for _ in range(40)}) == 8
    orders = [epoch_of(stream_of([4000], batch_size=1, seed=seed)) for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]


@given(sizes=SIZES, before=st.integers(0, 40), batch_size=st.integers(1, 9))
def test_a_stream_goes_on_from_any_position(sizes, before, batch_size):
    stream, other = (stream_of(sizes, batch_size=batch_size) for _ in range(2))
    for _ in range(before):
        next(stream)
    other.load_state_dict(stream.state_dict())
    assert other.state_dict() == stream.state_dict()
    for _ in range(5):
        a, b = next(stream), next(other)
        assert torch.equal(a.inputs_BL, b.inputs_BL)
        assert torch.equal(a.targets_BL, b.targets_BL)
        assert torch.equal(a.domain_B, b.domain_B)


@given(sizes=SIZES, world_size=st.integers(1, 5), batch_size=st.integers(1, 4))
def test_ranks_share_out_the_batches_of_one_stream(sizes, world_size, batch_size):
    whole = stream_of(sizes, batch_size=world_size * batch_size)
    ranks = [stream_of(sizes, batch_size=batch_size, rank=rank, world_size=world_size) for rank in range(world_size)]
    for _ in range(6):
        assert starts(next(whole)) == [start for rank in ranks for start in starts(next(rank))]
        assert all(rank.state_dict() == whole.state_dict() for rank in ranks)


@given(first=st.integers(1, 4), second=st.integers(1, 4), steps=st.integers(0, 12))
def test_another_number_of_ranks_neither_loses_nor_repeats_a_window(first, second, steps):
    alone = stream_of([300, 90], batch_size=1)
    ranks = [stream_of([300, 90], batch_size=2, rank=rank, world_size=first) for rank in range(first)]
    seen = [start for _ in range(steps) for rank in ranks for start in starts(next(rank))]
    state = ranks[0].state_dict()
    ranks = [stream_of([300, 90], batch_size=3, rank=rank, world_size=second) for rank in range(second)]
    for rank in ranks:
        rank.load_state_dict(state)
    seen += [start for _ in range(4) for rank in ranks for start in starts(next(rank))]
    assert seen == [starts(next(alone))[0] for _ in seen]


def test_a_state_of_other_data_is_refused():
    state = stream_of([100]).state_dict()
    for change, message in (
        ({"seed": 1}, "expected the data of the saved run .seed = 1., got seed = 0; use the same data and settings"),
        ({"seq_len": 9}, "seq_len = 9"),
        ({"corpus": "other"}, "corpus = other"),
    ):
        with pytest.raises(UserError, match=message):
            stream_of([100]).load_state_dict({**state, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rank": 2, "world_size": 2}, "expected a rank from 0 to 1, got 2"),
        ({"batch_size": 0}, "expected batch_size of at least 1, got 0"),
        ({"seq_len": 0}, "expected seq_len of at least 1, got 0"),
        ({"seq_len": 100}, "expected a domain of at least 101 training tokens, got none; lower seq_len"),
    ],
)
def test_a_stream_that_cannot_be_is_one_clear_error(change, message):
    with pytest.raises(UserError, match=message):
        stream_of([100], **change)


@given(size=st.integers(9, 100), batch_size=st.integers(1, 5), max_tokens=st.integers(1, 100))
def test_validation_windows_come_in_order_from_the_start(size, batch_size, max_tokens):
    batches = list(
        validation_batches(corpus_of([50, size]), "d1", batch_size=batch_size, seq_len=8, max_tokens=max_tokens)
    )
    windows = min((size - 1) // 8, max(1, max_tokens // 8))
    assert [start for batch in batches for start in starts(batch)] == [10_000 + 8 * i for i in range(windows)]
    assert [len(batch.inputs_BL) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
    for batch in batches:
        assert torch.equal(batch.targets_BL, batch.inputs_BL + 1)
        assert batch.domain_B.tolist() == [1] * len(batch.inputs_BL)


def test_validation_of_an_unknown_or_short_domain_is_one_clear_error():
    for domain, message in (("x", "expected one of the domains d0, got 'x'"), ("d0", "at least 9 held-out tokens")):
        with pytest.raises(UserError, match=message):
            next(validation_batches(corpus_of([8]), domain, batch_size=1, seq_len=8, max_tokens=8))


def test_batches_do_not_share_memory_with_the_corpus():
    corpus = corpus_of([100])
    batch = next(validation_batches(corpus, "d0", batch_size=2, seq_len=8, max_tokens=64))
    batch.inputs_BL.zero_()
    assert dataclasses.replace(corpus).val["d0"][1] == 1
    assert batch.targets_BL[0, 0] == 1
