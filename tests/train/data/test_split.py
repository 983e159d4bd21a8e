import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixtura.errors import UserError
from mixtura.train.data import Document
from mixtura.train.data.split import cut, split_documents

SIZES = st.lists(st.integers(1, 400), min_size=2, max_size=40)


def documents_of(sizes, domain="d"):
    return [Document(f"{i}", domain, chr(0x100 + i) * size) for i, size in enumerate(sizes)]


def size(documents):
    return sum(len(document.text.encode()) for document in documents)


@given(sizes=SIZES, fraction=st.floats(0.01, 0.5), seed=st.integers(0, 5))
def test_every_letter_is_in_one_part_and_both_parts_have_some(sizes, fraction, seed):
    documents = documents_of([2, *sizes])
    split = split_documents(documents, val_fraction=fraction, seed=seed)["d"]
    assert split.train
    assert split.val
    texts = [document.text for document in (*split.train, *split.val)]
    assert len(texts) == len(set(texts))
    assert set("".join(texts)) == set("".join(document.text for document in documents))


@given(sizes=SIZES, seed=st.integers(0, 5))
def test_the_split_depends_on_names_and_not_on_order(sizes, seed):
    documents = documents_of(sizes)
    forward, backward = (
        split_documents(some, val_fraction=0.2, seed=seed)["d"] for some in (documents, documents[::-1])
    )
    if not any("@" in document.name for document in (*forward.train, *backward.train)):
        assert set(forward.val) == set(backward.val)


@pytest.mark.parametrize("fraction", [0.02, 0.05, 0.3])
def test_about_the_asked_share_of_bytes_is_held_out_in_whole_documents(fraction):
    documents = documents_of([50 + 13 * i % 90 for i in range(300)])
    split = split_documents(documents, val_fraction=fraction)["d"]
    assert size(split.val) / size(documents) == pytest.approx(fraction, abs=0.005)
    assert set(split.train) | set(split.val) == set(documents)


def test_another_seed_holds_out_others():
    documents = documents_of([100] * 60)
    first, second = (set(split_documents(documents, val_fraction=0.1, seed=seed)["d"].val) for seed in (0, 1))
    assert len(first) == len(second) == 6
    assert first != second


def test_each_domain_is_split_by_itself_and_they_are_sorted():
    documents = [*documents_of([10] * 20, "b"), *documents_of([30] * 20, "a")]
    splits = split_documents(documents, val_fraction=0.1)
    assert list(splits) == ["a", "b"]
    assert [len(split.val) for split in splits.values()] == [2, 2]


def test_a_lone_book_is_cut_at_blank_lines_and_part_of_it_held_out():
    paragraphs = [f"Paragraph {i}\nof a long book.\n\n" for i in range(20_000)]
    book = Document("book.txt", "book", "".join(paragraphs))
    split = split_documents([book], val_fraction=0.1)["book"]
    pieces = [*split.train, *split.val]
    assert all(piece.text.endswith("book.\n\n") and len(piece.text) < 70_000 for piece in pieces)
    assert (
        "".join(piece.text for piece in sorted(pieces, key=lambda piece: int(piece.name.partition("@")[2])))
        == book.text
    )
    assert size(split.val) / size(pieces) == pytest.approx(0.1, abs=0.05)


def test_two_long_books_are_cut_instead_of_holding_one_out():
    books = [Document(name, "books", "".join(f"{name} {i}\n" for i in range(5000))) for name in ("one", "two")]
    split = split_documents(books, val_fraction=0.05)["books"]
    assert size(split.val) / size(books) == pytest.approx(0.05, abs=0.03)


def test_pieces_that_repeat_are_never_in_both_parts():
    text = ("the same line again\n" * 50 + "\n") * 200
    with pytest.raises(UserError, match="expected text of domain 'd' that can be cut"):
        split_documents([Document("a.txt", "d", "x")], val_fraction=0.05)
    split = split_documents([Document("a.txt", "d", text + "end")], val_fraction=0.05)["d"]
    assert not {piece.text for piece in split.train} & {piece.text for piece in split.val}


@given(text=st.text("ab\n ", min_size=1, max_size=200), letters=st.integers(1, 50))
def test_pieces_join_to_the_text_and_stay_short(text, letters):
    pieces = list(cut(Document("a", "d", text), letters=letters))
    assert "".join(piece.text for piece in pieces) == text
    assert all(0 < len(piece.text) <= 2 * letters + 1 for piece in pieces)
    assert len({piece.name for piece in pieces}) == len(pieces)


@pytest.mark.parametrize("limit", [450, 1550, 5999, 6000, 90_000])
def test_max_bytes_caps_each_domain_and_cuts_only_one_document(limit):
    documents = [*documents_of([50] * 60, "a"), *documents_of([50] * 60, "b")]
    for split in split_documents(documents, val_fraction=0.2, max_bytes=limit).values():
        kept = {*split.train, *split.val}
        assert min(limit, 6000) - 1 <= size(kept) <= limit
        assert len(kept - set(documents)) <= 1


def test_max_bytes_cuts_a_lone_book():
    book = Document("book.txt", "book", "".join(f"line {i}\n" for i in range(10_000)))
    split = split_documents([book], val_fraction=0.1, max_bytes=20_000)["book"]
    assert size([*split.train, *split.val]) == 20_000
