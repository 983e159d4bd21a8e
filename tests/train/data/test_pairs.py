"""Pairs as batches: what a model is given, how little is padding, going on, sharing out over ranks."""

import pytest
import torch

from mixtura.errors import UserError
from mixtura.train.data.pairs import PairStream, cut, in_order, tokenized
from mixtura.train.data.parallel import Pair, PairReading, ParallelConfig, read_pairs
from tests.train.parallel_texts import write_files


def read(folder, **options):
    paths = write_files(folder, languages=("en", "es", "de"), count=300)
    where = {"source": (str(paths[0]),) * 2, "target": tuple(map(str, paths[1:]))}
    config = ParallelConfig(**where, **({"vocab_size": 280, "max_tokens": 20, "batch_tokens": 120} | options))
    return tokenized(read_pairs(config), config)


def stream(data, **options):
    return PairStream(data.train, **({"tokens": 120, "seed": 0, "fingerprint": data.fingerprint} | options))


def test_a_batch_is_its_texts_with_language_ends_and_padding(tmp_path):
    data = read(tmp_path)
    codec, pairs = data.codec, data.val
    assert codec.languages == ("de", "en", "es")
    rows = torch.tensor([7, 0, 30])
    batch, end = pairs.batch(rows), codec.tokenizer.end_id
    for place, row in enumerate(rows.tolist()):
        pair = pairs.texts[row]
        source = batch.source_BS[place][batch.source_mask_BS[place]].tolist()
        assert source == codec.source(pair.source, to=pair.target_language)
        target = codec.tokenizer.encode(pair.target)
        assert batch.inputs_BL[place][batch.mask_BL[place]].tolist() == [end, *target]
        assert batch.targets_BL[place][batch.mask_BL[place]].tolist() == [*target, end]
    assert batch.source_mask_BS.any(0).all()
    assert batch.mask_BL.any(0).all()
    assert (batch.targets_BL[~batch.mask_BL] == end).all()
    assert int(batch.source_BS[:, 0].min()) >= codec.tokenizer.vocab_size


def test_an_epoch_passes_every_pair_once_in_batches_of_like_length(tmp_path):
    data = read(tmp_path)
    batches = stream(data)
    rows = [row[row >= 0] for row in batches.epoch(torch.Generator().manual_seed(1))]
    assert torch.cat(rows).sort().values.tolist() == list(range(len(data.train)))
    assert all(len(row) * int(data.train.sizes()[row].max()) <= 120 for row in rows)
    other = [row[row >= 0] for row in batches.epoch(torch.Generator().manual_seed(2))]
    assert [row.tolist() for row in rows] != [row.tolist() for row in other]
    real, all_of_it = 0, 0
    for _ in range(len(rows)):
        mask = next(batches).mask_BL
        real, all_of_it = real + int(mask.sum()), all_of_it + mask.numel()
    assert real > 0.85 * all_of_it
    assert batches.state_dict()["epoch"] == 1


def test_it_stops_and_goes_on_and_is_shared_out(tmp_path):
    data = read(tmp_path)
    first = stream(data)
    length = len(first.epoch(torch.Generator()))
    seen = [next(first).source_BS for _ in range(length + 3)]
    again = stream(data)
    for _ in range(length - 1):
        next(again)
    going_on = stream(data, seed=0)
    going_on.load_state_dict(again.state_dict())
    for expected in seen[length - 1 :]:
        assert torch.equal(next(going_on).source_BS, expected)
    ranks = [stream(data, rank=rank, world_size=2) for rank in range(2)]
    for place in range(0, 10, 2):
        for rank in range(2):
            assert torch.equal(next(ranks[rank]).source_BS, seen[place + rank])
    other = read(tmp_path, batch_tokens=121)
    with pytest.raises(UserError, match=r"expected the data of the saved run \(pairs = "):
        stream(other).load_state_dict(first.state_dict())


def test_the_same_texts_give_the_same_tokens(tmp_path):
    first, again = read(tmp_path), read(tmp_path)
    assert first.fingerprint == again.fingerprint != read(tmp_path, vocab_size=290).fingerprint


def test_what_is_too_long_or_too_much_is_counted(tmp_path):
    data = read(tmp_path, max_tokens=5, val_pairs=2, val_fraction=0.3)
    assert int(data.train.lengths.max()) == 5
    assert [len(data.val.of(direction)) for direction in data.directions] == [2] * 4
    assert "beyond data.val_pairs" in data.report
    assert "too long" in data.report
    left_out = sum(int(part.split()[0].replace(",", "")) for part in data.report.removeprefix("left out: ").split(", "))
    assert left_out + len(data.train) + len(data.val) == 4 * 300
    with pytest.raises(UserError, match=r"expected pairs in the part 'val' of at most data.max_tokens = 1 tokens"):
        read(tmp_path, max_tokens=1)


def test_held_out_pairs_come_in_order_of_length(tmp_path):
    data = read(tmp_path)
    rows = list(in_order(data.val, data.val.of("de-en"), tokens=60))
    assert torch.cat(rows).sort().values.tolist() == data.val.of("de-en").tolist()
    sizes = data.val.sizes()[torch.cat(rows)]
    assert (sizes.diff() >= 0).all()


def test_batches_are_cut_at_their_tokens():
    sizes = torch.tensor([1, 1, 2, 4, 4, 5, 30])
    assert cut(sizes, tokens=8) == [(0, 3), (3, 5), (5, 6), (6, 7)]
    assert cut(sizes[:0], tokens=8) == []


def test_a_language_that_nothing_is_translated_to_is_no_choice():
    pairs = tuple(Pair("en", "es", f"one {n}", f"uno {n}") for n in range(9))
    data = tokenized(PairReading(train=pairs[1:], val=pairs[:1]), ParallelConfig(vocab_size=257))
    assert data.codec.languages == ("es",)
    with pytest.raises(UserError, match="expected a language among es, got 'en'"):
        data.codec.source("uno", to="en")
