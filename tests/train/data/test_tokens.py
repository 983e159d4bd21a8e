import dataclasses
import json
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from mixtura.errors import UserError
from mixtura.train.data import DataConfig, TextTokenizer, prepare
from mixtura.train.data.documents import read_documents


@pytest.fixture
def config(tmp_path):
    """Two domains of 40 short documents each."""
    for domain, word in (("letters", "abc"), ("numbers", "123")):
        (tmp_path / "texts" / domain).mkdir(parents=True)
        for i in range(40):
            (tmp_path / "texts" / domain / f"{i}.txt").write_text(f"{word} {i} größe\n" * (5 + i % 7))
    return DataConfig(
        path=str(tmp_path / "texts"), seq_len=16, batch_size=4, val_fraction=0.1, cache=str(tmp_path / "cache")
    )


def ids(part):
    return {domain: array.tolist() for domain, array in part.items()}


def texts_of(corpus, array):
    """The documents of a token file, cut at the ends."""
    ends = np.flatnonzero(array == corpus.tokenizer.end_id)
    assert ends[-1] == len(array) - 1
    return [corpus.tokenizer.decode(piece.tolist()) for piece in np.split(array, ends + 1)[:-1]]


@pytest.mark.parametrize("vocab_size", [257, 300])
def test_every_document_is_in_one_part_and_comes_back_from_its_tokens(config, vocab_size):
    corpus = prepare(dataclasses.replace(config, vocab_size=vocab_size))
    documents = read_documents(config.path).documents
    assert corpus.domains == ("letters", "numbers")
    assert corpus.tokenizer.vocab_size == vocab_size
    for domain in corpus.domains:
        train, val = (texts_of(corpus, part[domain]) for part in (corpus.train, corpus.val))
        assert sorted(train + val) == sorted(document.text for document in documents if document.domain == domain)
        assert val
        assert not set(train) & set(val)


@pytest.mark.parametrize("vocab_size", [257, 300])
def test_the_summary_counts_what_is_in_the_files(config, vocab_size):
    corpus = prepare(dataclasses.replace(config, vocab_size=vocab_size))
    for row in corpus.summary():
        train, val = (texts_of(corpus, part[row.domain]) for part in (corpus.train, corpus.val))
        assert (row.train_documents, row.val_documents) == (len(train), len(val))
        assert (row.train_tokens, row.val_tokens) == (len(corpus.train[row.domain]), len(corpus.val[row.domain]))
        assert row.train_mb == sum(len(text.encode()) for text in train) / 1e6
        val_bytes = sum(len(text.encode()) for text in val)
        assert row.val_mb == val_bytes / 1e6
        assert corpus.bytes_per_token[row.domain] == pytest.approx(val_bytes / row.val_tokens)
        lengths = np.array(corpus.tokenizer.byte_lengths)
        assert lengths[corpus.val[row.domain]].sum() == val_bytes
    assert corpus.report == "80 documents"


def test_merges_are_learned_from_training_documents_only(config, tmp_path):
    held_out = prepare(config)
    texts = [text for domain in held_out.domains for text in texts_of(held_out, held_out.train[domain])]
    corpus = prepare(dataclasses.replace(config, vocab_size=300))
    TextTokenizer.train(texts, vocab_size=300).save(tmp_path / "expected.json")
    assert (corpus.folder / "tokenizer.json").read_text() == (tmp_path / "expected.json").read_text()


def test_tokens_are_mapped_from_files_of_the_smallest_type(config):
    corpus = prepare(config)
    for array in (*corpus.train.values(), *corpus.val.values()):
        assert array.dtype == np.uint16
        assert isinstance(array.base, np.memmap)


def test_the_second_start_reads_no_text(config, monkeypatch):
    first, messages = prepare(config), []
    monkeypatch.setattr("mixtura.train.data.tokens.read_sources", None)
    second = prepare(config, on_progress=messages.append)
    assert messages == []
    assert second.folder == first.folder
    assert ids(second.train) == ids(first.train)


def test_windows_and_batches_do_not_change_the_cache_but_the_text_and_the_seed_do(config, tmp_path):
    folder = prepare(config).folder
    assert prepare(dataclasses.replace(config, seq_len=8, batch_size=2, val_tokens=64)).folder == folder
    assert prepare(dataclasses.replace(config, seed=1)).folder != folder
    (tmp_path / "texts" / "letters" / "0.txt").write_text("another text\n")
    assert prepare(config).folder != folder


def test_files_that_were_only_touched_or_moved_give_the_same_folder(config, tmp_path):
    folder = prepare(config).folder
    os.utime(tmp_path / "texts" / "letters" / "0.txt", (1, 1))
    assert prepare(config).folder == folder
    (tmp_path / "texts").rename(tmp_path / "moved")
    assert prepare(dataclasses.replace(config, path=str(tmp_path / "moved"))).folder == folder


def damage_cut(path):
    os.truncate(path, path.stat().st_size // 2)


def damage_empty(path):
    os.truncate(path, 0)


def damage_garbage(path):
    path.write_bytes(b"\xff" * 100)


def damage_gone(path):
    path.unlink()


@pytest.mark.parametrize("damage", [damage_cut, damage_empty, damage_garbage, damage_gone])
@pytest.mark.parametrize("name", ["train-0000.npy", "val-0001.npy", "meta.json", "tokenizer.json"])
def test_a_damaged_cache_is_made_again(config, damage, name):
    first = prepare(config)
    expected = ids(first.train), ids(first.val)
    damage(first.folder / name)
    messages = []
    second = prepare(config, on_progress=messages.append)
    assert "encoding letters" in messages
    assert second.folder == first.folder
    assert (ids(second.train), ids(second.val)) == expected
    assert not [path for path in first.folder.parent.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("content", [b"", b"\xff", b"../texts", b"nothing"])
def test_a_damaged_index_is_made_again(config, content):
    folder = prepare(config).folder
    (index,) = (folder.parent / "index").iterdir()
    index.write_bytes(content)
    assert prepare(config).folder == folder
    assert index.read_text() == folder.name


def test_a_meta_file_of_another_shape_is_made_again(config):
    folder = prepare(config).folder
    for meta in ([], {"rows": [{}]}, {"rows": 5}, {"rows": [], "report": ""}):
        (folder / "meta.json").write_text(json.dumps(meta))
        assert prepare(config).domains == ("letters", "numbers")


def test_starts_that_race_get_the_same_tokens(config):
    with ThreadPoolExecutor(4) as pool:
        corpora = list(pool.map(prepare, [config] * 4))
    assert len({corpus.folder for corpus in corpora}) == 1
    assert all(ids(corpus.train) == ids(corpora[0].train) for corpus in corpora)


def test_progress_tells_what_takes_time(config):
    messages = []
    prepare(dataclasses.replace(config, vocab_size=300), on_progress=messages.append)
    assert messages == [
        "reading 80 files",
        "80 documents",
        "learning 300 tokens",
        "encoding letters",
        "encoding numbers",
    ]


def test_a_vocabulary_the_text_cannot_fill_is_said(config):
    messages = []
    corpus = prepare(dataclasses.replace(config, vocab_size=50_000), on_progress=messages.append)
    assert corpus.tokenizer.vocab_size < 1000
    assert f"the text is too short for 50000 tokens: learned {corpus.tokenizer.vocab_size}" in messages


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 1000}, "expected at least 17000 training tokens, one batch of 1000 windows of 17, got "),
        (
            {"seq_len": 2000, "val_tokens": 2000},
            r"domain 'letters': expected at least 2001 held-out tokens \(data.seq_len \+ 1\), got \d+; "
            "raise --data.val_fraction, lower --data.seq_len or add text",
        ),
        ({"path": "no/such"}, "no/such: expected a file, a folder or a glob, found nothing"),
    ],
)
def test_text_that_is_too_short_or_missing_is_one_clear_error(config, change, message):
    with pytest.raises(UserError, match=message) as caught:
        prepare(dataclasses.replace(config, **change))
    assert "\n" not in str(caught.value)


def test_a_cache_that_cannot_be_written_is_one_clear_error(config, tmp_path):
    with pytest.raises(UserError, match=r"cannot write the tokens in .*; make it writable, or choose another folder"):
        prepare(dataclasses.replace(config, cache=str(tmp_path / "texts" / "letters" / "0.txt")))


def test_max_mb_caps_the_text_of_each_domain(config):
    corpus = prepare(dataclasses.replace(config, max_mb=0.002, val_fraction=0.3))
    assert [round(row.train_mb + row.val_mb, 6) for row in corpus.summary()] == [0.002, 0.002]


def test_the_embedded_corpus_is_the_default(tmp_path):
    config = DataConfig(max_mb=0.2, cache=str(tmp_path))
    corpus = prepare(config)
    assert {"python", "prose"} <= set(corpus.domains)
    assert prepare(config).folder == corpus.folder


def test_some_domains_alone_have_the_tokens_of_all(config):
    config = dataclasses.replace(config, vocab_size=300)
    whole = prepare(config)
    part = prepare(dataclasses.replace(config, domains=("numbers",)))
    assert (part.domains, [row.domain for row in part.summary()]) == (("numbers",), ["numbers"])
    assert part.folder == whole.folder
    assert part.tokenizer.vocab_size == 300
    assert part.train["numbers"].tolist() == whole.train["numbers"].tolist()
    with pytest.raises(UserError, match=r"data\.domains: expected some of letters, numbers, got words"):
        prepare(dataclasses.replace(config, domains=("words", "numbers")))
