"""Documents with a name and a domain: read from a user's files, or from what every Python installation carries."""

import glob
import os
import sysconfig
import tokenize
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Literal

from mixtura.errors import UserError
from mixtura.train.data.formats import TABLES, TEXTS, read_rows

_TEST_FOLDERS = {"test", "tests", "idle_test"}
# Installed packages differ between machines, encodings/ holds generated character tables, and the prose of pydoc_data/
# is read as documents of its own.
_OTHER_FOLDERS = {"site-packages", "dist-packages", "__pycache__", "encodings", "pydoc_data"}
_PACKAGE = 12  # files of a package that is told apart


@dataclass(frozen=True)
class Document:
    """One text with its name (unique within its domain, the same on every machine) and the domain it belongs to."""

    name: str
    domain: str
    text: str


@dataclass(frozen=True)
class Source:
    """One file to read: where it is, its name relative to what the user named, and its domain."""

    file: Path
    name: str
    domain: str


@dataclass(frozen=True)
class Sources:
    """The files found, in the order they are read, and how many others were passed over (reason, count)."""

    files: tuple[Source, ...]
    skipped: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class Reading:
    """The documents read, and how many files or rows were left out (reason, count).

    Example:
        >>> Reading(documents=(), skipped=(("empty", 2), ("repeated", 1))).report()
        '0 documents; left out: 2 empty, 1 repeated'
    """

    documents: tuple[Document, ...]
    skipped: tuple[tuple[str, int], ...] = ()

    def report(self) -> str:
        """One line for people: documents kept, and the count of each reason to leave one out."""
        left_out = ", ".join(f"{count} {reason}" for reason, count in self.skipped)
        return f"{len(self.documents)} documents" + (f"; left out: {left_out}" if left_out else "")


def embedded_corpus() -> Reading:
    """Read the text every Python installation carries, sorted by domain and name.

    Domains: `python` (the standard library), `tests` (its tests), `prose` (the language reference shown by `help()`)
    and `c` (the C headers). Some distributions leave tests or headers out; then that domain is absent.

    Raises:
        UserError: when the standard library is not there as source files.

    Example:
        >>> documents = embedded_corpus().documents
        >>> {"python", "prose"} <= {document.domain for document in documents}
        True
    """
    return read_sources(embedded_sources())


def read_documents(path: str | Path, text_column: str = "text", domain_column: str = "") -> Reading:
    """Read a user's text: one file, a folder (with sub-folders), or a glob.

    A single file is one domain named after its stem. In a folder, each first-level sub-folder is a domain, and files
    directly inside it take the folder's name; files of a glob take the name of the folder they lie in. A domain column
    overrules all of these for the rows of tables. Each row of a .jsonl, .csv or .parquet file is a document; any other
    file is one. Empty and repeated texts are dropped.

    Raises:
        UserError: when nothing is found or a file is broken; the message names the file and the place.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "poem.txt").write_text("Two roads")
        ...     read_documents(Path(folder, "poem.txt")).documents
        (Document(name='poem.txt', domain='poem', text='Two roads'),)
    """
    return read_sources(user_sources(path), text_column=text_column, domain_column=domain_column)


def read_sources(sources: Sources, *, text_column: str = "text", domain_column: str = "") -> Reading:
    """Read the files that `embedded_sources` or `user_sources` found; drop empty and repeated texts.

    Example:
        >>> read_sources(embedded_sources()).documents == embedded_corpus().documents
        True
    """
    skipped = Counter(dict(sources.skipped))

    def read() -> Iterator[Document]:
        for source in sources.files:
            if isinstance(source, _Embedded):
                yield from _read_embedded(source, skipped)
                continue
            for row in read_rows(source.file, text_column=text_column, domain_column=domain_column):
                name = f"{source.name}#{row.place}" if row.place else source.name
                yield Document(name, row.domain or source.domain, row.text)

    documents = tuple(distinct(read(), skipped))
    if not documents:
        raise UserError(
            f"expected text in {sources.files[0].file} and {len(sources.files) - 1} other files, got only empty ones"
        )
    return Reading(documents, tuple(sorted(skipped.items())))


def distinct(documents: Iterable[Document], skipped: Counter[str]) -> Iterator[Document]:
    """Pass on every document whose text is neither blank nor seen before; count the others in `skipped`.

    Example:
        >>> skipped = Counter()
        >>> twice = [Document("a", "x", "one"), Document("b", "y", "one"), Document("c", "y", " ")]
        >>> [document.name for document in distinct(twice, skipped)], dict(skipped)
        (['a'], {'repeated': 1, 'empty': 1})
    """
    seen = set()
    for document in documents:
        if not document.text.strip():
            skipped["empty"] += 1
            continue
        digest = blake2b(document.text.encode(), digest_size=16).digest()
        if digest in seen:
            skipped["repeated"] += 1
            continue
        seen.add(digest)
        yield document


def user_sources(path: str | Path) -> Sources:
    """Find the files of a path the user gave: a file, a folder, or a glob.

    Raises:
        UserError: when there is nothing to read.

    Example:
        >>> user_sources("no/such/folder")
        Traceback (most recent call last):
        ...
        mixtura.errors.UserError: no/such/folder: expected a file, a folder or a glob, found nothing; check --data.path
    """
    root = Path(path).expanduser()
    if root.is_file():
        return _one_file(root)
    if root.is_dir():
        name = root.resolve().name or "text"
        found = [(file, file.relative_to(root)) for file in _walk(root, set())]
        sources = [Source(file, to.as_posix(), to.parts[0] if len(to.parts) > 1 else name) for file, to in found]
    else:
        # Not Path.glob: it takes no absolute patterns.
        matches = sorted(glob.glob(str(root), recursive=True))  # noqa: PTH207  for the reason above
        files = [file for file in map(Path, matches) if file.is_file()]
        base = Path(os.path.commonpath([file.parent for file in files])) if files else root
        sources = [
            Source(file, file.relative_to(base).as_posix(), file.absolute().parent.name or "text") for file in files
        ]
    if not sources and not root.is_dir():
        raise UserError(f"{path}: expected a file, a folder or a glob, found nothing; check --data.path")
    kept = tuple(source for source in sources if source.file.suffix.lower() in TABLES + TEXTS)
    if not kept:
        raise UserError(
            f"{path}: expected at least one file of {' '.join(TABLES + TEXTS[:2])} or source code, "
            f"got {len(sources)} files of other kinds; check --data.path"
        )
    other = len(sources) - len(kept)
    return Sources(kept, (("files of other kinds", other),) if other else ())


def _one_file(file: Path) -> Sources:
    if file.suffix.lower() not in TABLES + TEXTS:
        raise UserError(
            f"{file}: expected a file of {' '.join(TABLES + TEXTS[:2])} or source code, "
            f"got {file.suffix or 'no ending'!r}; if it is plain text, rename it to {file.stem}.txt"
        )
    return Sources((Source(file, file.name, file.stem),))


def _walk(root: Path, without: set[str]) -> Iterator[Path]:
    """All files below, sorted; without hidden ones, which no one means by naming a folder."""
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if name not in without and not name.startswith("."))
        for name in sorted(files):
            if not name.startswith("."):
                yield Path(folder, name)


@dataclass(frozen=True)
class _Embedded(Source):
    """A file of the Python installation, which is read by Python's own rules for its kind."""


def embedded_sources(*, by: Literal["kind", "package"] = "kind") -> Sources:
    """Find the files of the embedded corpus.

    Args:
        by: "kind": of text, as `embedded_corpus` says. "package": the standard library alone, by its larger packages.

    Raises:
        UserError: when the standard library is not there as source files.

    Example:
        >>> {source.domain for source in embedded_sources().files} >= {"python", "prose"}
        True
    """
    library, headers = (Path(sysconfig.get_path(name)) for name in ("stdlib", "include"))
    found = []
    for file in _walk(library, _OTHER_FOLDERS):
        name = file.relative_to(library)
        # _sysconfigdata and config-* hold the paths and flags this very Python was built with.
        if file.suffix == ".py" and not name.parts[0].startswith(("_sysconfigdata", "config-")):
            domain = "tests" if _TEST_FOLDERS & set(name.parts) else "python"
            found.append(_Embedded(file, name.as_posix(), domain))
    if not found:
        raise UserError(
            f"expected the standard library's source files in {library}, found none; "
            "train on text of your own: --data.path FILE_OR_FOLDER"
        )
    if by == "package":
        return _by_package(found)
    topics = library / "pydoc_data" / "topics.py"
    if topics.is_file():
        found.append(_Embedded(topics, "topics", "prose"))
    found += [
        _Embedded(file, file.relative_to(headers).as_posix(), "c")
        for file in _walk(headers, set())
        if file.suffix == ".h"
    ]
    return Sources(tuple(sorted(found, key=lambda source: (source.domain, source.name))))


def _by_package(found: Sequence[_Embedded]) -> Sources:
    """Packages of at least a dozen files; the others would leave too few to hold out."""
    files = [(source, Path(source.name).parts) for source in found if source.domain == "python"]
    sizes = Counter(parts[0] for _, parts in files if len(parts) > 1)
    kept = [_Embedded(source.file, source.name, parts[0]) for source, parts in files if sizes[parts[0]] >= _PACKAGE]
    return Sources(tuple(sorted(kept, key=lambda source: (source.domain, source.name))))


def _read_embedded(source: _Embedded, skipped: Counter[str]) -> Iterator[Document]:
    if source.domain == "prose":
        from pydoc_data.topics import topics

        for name, text in sorted(distinct_topics(topics).items()):
            yield Document(f"topics/{name}", "prose", text)
        return
    try:
        if source.domain == "c":
            text = source.file.read_text(encoding="utf-8")
        else:
            with tokenize.open(source.file) as lines:
                text = lines.read()
    except (SyntaxError, UnicodeDecodeError):
        # The tests hold files that are broken on purpose.
        skipped["not in their declared encoding"] += 1
        return
    yield Document(source.name, source.domain, text)


def distinct_topics(topics: dict[str, str]) -> dict[str, str]:
    """Drop paragraphs that a longer topic already has, and topics of which less than half is left.

    A third of the reference's topics are excerpts of longer ones; without this, held-out text would be trained on.

    Example:
        >>> long, short = "a long paragraph about calls " * 4, "a long paragraph about names " * 4
        >>> distinct_topics({"part": short, "whole": long + "\\n\\n" + short}).keys()
        dict_keys(['whole'])
    """
    seen: set[str] = set()
    kept = {}
    for name, text in sorted(topics.items(), key=lambda item: (-len(item[1]), item[0])):
        left = []
        for paragraph in text.split("\n\n"):
            words = " ".join(paragraph.split())
            if words not in seen:
                left.append(paragraph)
            if len(words) >= 40:
                seen.add(words)
        if 2 * sum(map(len, left)) >= len(text):
            kept[name] = "\n\n".join(left)
    return kept
