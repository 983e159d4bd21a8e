import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from mixtura.errors import UserError
from mixtura.train.data import TextTokenizer

SAMPLE = [
    "def train(model):\n    return model.step()\n",
    "The cat sat on the mat, didn't it?  Yes. ",
    "größer 東京",
] * 20
# Letters, digits and signs of the word rule, white space and controls of every kind, and some text beyond ASCII.
TEXT = st.text(st.sampled_from("abTt's09 _.<|end|>\n\t\r\x0b\x0c\x1c\x1f\x00\x7f")) | st.text()


@pytest.fixture(scope="module")
def byte_tokenizer():
    return TextTokenizer.train([], vocab_size=257)


@pytest.fixture(scope="module")
def merging_tokenizer():
    return TextTokenizer.train(SAMPLE, vocab_size=310)


@pytest.fixture(params=["bytes", "merges"])
def tokenizer(request, byte_tokenizer, merging_tokenizer):
    return byte_tokenizer if request.param == "bytes" else merging_tokenizer


@given(text=TEXT)
def test_any_text_comes_back(byte_tokenizer, merging_tokenizer, text):
    for tokenizer in (byte_tokenizer, merging_tokenizer):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert "".join(tokenizer.stream(ids)) == text
        assert tokenizer.end_id not in ids
        assert sum(tokenizer.byte_lengths[i] for i in ids) == len(text.encode())


@given(texts=st.lists(TEXT, max_size=5))
def test_many_documents_get_the_ids_of_each_with_an_end_between(byte_tokenizer, merging_tokenizer, texts):
    for tokenizer in (byte_tokenizer, merging_tokenizer):
        expected = [i for text in texts for i in (*tokenizer.encode(text), tokenizer.end_id)]
        assert tokenizer.encode_documents(texts).tolist() == expected


def test_vocabulary_of_257_has_one_id_per_byte_and_one_end(byte_tokenizer):
    assert byte_tokenizer.vocab_size == 257
    assert sorted(byte_tokenizer.byte_lengths) == [0] + [1] * 256
    assert len(byte_tokenizer.encode("größer")) == len("größer".encode())


def test_merges_are_learned_and_deterministic(merging_tokenizer):
    assert merging_tokenizer.vocab_size == 310
    assert len(merging_tokenizer.encode(SAMPLE[0])) < len(SAMPLE[0]) / 2
    assert TextTokenizer.train(SAMPLE, vocab_size=310).encode("the model") == merging_tokenizer.encode("the model")


def test_text_too_short_for_all_merges_gives_fewer_tokens():
    assert TextTokenizer.train(["ab ab"], vocab_size=5000).vocab_size == 259


def test_a_written_end_marker_is_ordinary_text(tokenizer):
    ids = tokenizer.encode("a<|end|>b")
    assert tokenizer.end_id not in ids
    assert tokenizer.decode(ids) == "a<|end|>b"


def test_pieces_show_parts_of_characters_and_the_end(byte_tokenizer):
    ids = [*byte_tokenizer.encode("a€"), byte_tokenizer.end_id]
    assert byte_tokenizer.pieces(ids) == ["a", "\\xe2", "\\x82", "\\xac", "<|end|>"]
    assert byte_tokenizer.decode(ids) == "a€"


def test_the_stream_waits_for_whole_characters_and_shows_broken_ones(byte_tokenizer):
    euro = byte_tokenizer.encode("€")
    assert list(byte_tokenizer.stream([*euro, *euro[:2], *byte_tokenizer.encode("a")])) == ["€", "\ufffda"]
    assert list(byte_tokenizer.stream(euro[:2])) == ["\ufffd"]


def test_a_saved_tokenizer_is_the_same(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "tokenizer.json")
    loaded = TextTokenizer.load(tmp_path / "tokenizer.json")
    text = "def größer(<|end|>):\n"
    assert loaded.encode(text) == tokenizer.encode(text)
    assert (loaded.vocab_size, loaded.end_id) == (tokenizer.vocab_size, tokenizer.end_id)


@pytest.mark.parametrize("content", ["", "{", "{}", '{"version": "1.0", "model": {"type": "BPE"}}'])
def test_a_broken_file_is_one_clear_error(tmp_path, content):
    (tmp_path / "t.json").write_text(content)
    with pytest.raises(UserError, match=r"t.json: expected a tokenizer that mixtura wrote, got: ") as caught:
        TextTokenizer.load(tmp_path / "t.json")
    assert "\n" not in str(caught.value)


def test_another_kind_of_tokenizer_is_refused(tmp_path):
    Tokenizer(models.WordLevel({"word": 0, "<|end|>": 1}, unk_token="word")).save(str(tmp_path / "t.json"))
    with pytest.raises(UserError, match="expected a byte-level tokenizer"):
        TextTokenizer.load(tmp_path / "t.json")
    with pytest.raises(UserError, match=r"cannot read the tokenizer .*none.json: No such file"):
        TextTokenizer.load(tmp_path / "none.json")


def test_ids_and_text_out_of_range_are_refused(tokenizer):
    for bad in (-1, tokenizer.vocab_size):
        with pytest.raises(UserError, match=f"expected token ids from 0 to {tokenizer.vocab_size - 1}, got {bad}"):
            tokenizer.decode([bad])
    with pytest.raises(UserError, match="half of a surrogate pair at 1"):
        tokenizer.encode("a\udc80")
