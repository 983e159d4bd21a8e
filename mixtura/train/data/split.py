"""Documents -> training and held-out documents of each domain, by a hash of their names and never by their order."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b

from mixtura.errors import UserError
from mixtura.train.data.documents import Document, distinct

PIECE_LETTERS = 1 << 16
_BLANK_LINE = re.compile(r"\n[ \t\r]*\n")


@dataclass(frozen=True)
class Split:
    """The two parts of one domain; no text is in both."""

    train: tuple[Document, ...]
    val: tuple[Document, ...]


def split_documents(
    documents: Sequence[Document], *, val_fraction: float, max_bytes: float = 0, seed: int = 0
) -> Mapping[str, Split]:
    """Hold out about `val_fraction` of every domain's bytes, in whole documents chosen by a hash of name and seed.

    A domain in which no whole document is small enough (the only file, or two long books) is first cut at blank lines
    into pieces of about 64 kB. With `max_bytes`, each domain keeps documents in the order of their hashes up to it.
    Domains come sorted by name, and documents within a part as they came.

    Raises:
        UserError: when a domain's text cannot be cut into two different parts.

    Example:
        >>> documents = [Document(f"{i}.txt", "poems", f"poem {i} ") for i in range(20)]
        >>> split = split_documents(documents, val_fraction=0.1)["poems"]
        >>> len(split.train), len(split.val), set(split.train) & set(split.val)
        (18, 2, set())
    """
    by_domain: dict[str, list[Document]] = {}
    for document in documents:
        by_domain.setdefault(document.domain, []).append(document)
    return {
        name: _split_domain(by_domain[name], val_fraction=val_fraction, max_bytes=max_bytes, seed=seed)
        for name in sorted(by_domain)
    }


def cut(document: Document, *, letters: int = PIECE_LETTERS) -> Iterator[Document]:
    r"""Cut one document into pieces of about `letters` characters: at a blank line, else a line's end, else anywhere.

    Example:
        >>> [piece.text for piece in cut(Document("a", "x", "one\n\ntwo two\nthree"), letters=5)]
        ['one\n\n', 'two two\n', 'three']
    """
    text, start, number = document.text, 0, 0
    while start < len(text):
        end = start + letters
        if end < len(text):
            blank = _BLANK_LINE.search(text, end - 1, end + letters)
            line = text.find("\n", end - 1, end + letters)
            end = blank.end() if blank else line + 1 if line >= 0 else end
        yield replace(document, name=f"{document.name}@{number}", text=text[start:end])
        start, number = end, number + 1


def _split_domain(documents: Sequence[Document], *, val_fraction: float, max_bytes: float, seed: int) -> Split:
    documents = _cap(documents, max_bytes, seed)
    sizes = [_size(document) for document in documents]
    if len(documents) < 2 or min(sizes) > 2 * val_fraction * sum(sizes):
        letters = max(1, min(PIECE_LETTERS, int(val_fraction * sum(len(document.text) for document in documents))))
        pieces = (piece for document in documents for piece in cut(document, letters=letters))
        documents = list(distinct(pieces, Counter()))
        if len(documents) < 2:
            raise UserError(
                f"expected text of domain {documents[0].domain!r} that can be cut into a training and a held-out part, "
                f"got {sum(sizes)} bytes; add text to {documents[0].name.rpartition('@')[0]}"
            )
    held_out = _choose(documents, val_fraction, seed)
    return Split(
        train=tuple(document for document in documents if document.name not in held_out),
        val=tuple(document for document in documents if document.name in held_out),
    )


def _choose(documents: Sequence[Document], val_fraction: float, seed: int) -> set[str]:
    """Take a document where that brings the held-out bytes nearer to the target; at least the smallest one.

    Since the target is at most half of all the bytes, the last one left is never taken.
    """
    target = val_fraction * sum(map(_size, documents))
    chosen, held = set(), 0
    for document in sorted(documents, key=lambda document: _hash(document, seed)):
        size = _size(document)
        if held + size / 2 <= target:
            chosen.add(document.name)
            held += size
    return chosen or {min(documents, key=lambda document: (_size(document), _hash(document, seed))).name}


def _cap(documents: Sequence[Document], max_bytes: float, seed: int) -> Sequence[Document]:
    """The first documents in the order of their hashes, the last one shortened; back in the order they came."""
    if not max_bytes or sum(map(_size, documents)) <= max_bytes:
        return documents
    kept, left = {}, int(max_bytes)
    for document in sorted(documents, key=lambda document: _hash(document, seed)):
        text = document.text.encode()[:left].decode(errors="ignore")
        if not text.strip():
            break
        kept[document.name] = replace(document, text=text)
        left -= _size(kept[document.name])
    return [kept[document.name] for document in documents if document.name in kept] or documents[:1]


def _hash(document: Document, seed: int) -> bytes:
    return blake2b(f"{seed}/{document.domain}/{document.name}".encode(), digest_size=16).digest()


def _size(document: Document) -> int:
    return len(document.text.encode())
