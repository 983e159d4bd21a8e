"""The English and the Spanish Bible of two Debian packages, verse by verse; read by pysword."""

import html
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from mixtura.errors import UserError

FOLDER = Path("/usr/share/sword")
LANGUAGES = ("en", "es")
MODULES = ("engWEB2015eb", "spaRV1909eb")  # World English Bible, Reina-Valera 1909: both in the public domain
PACKAGES = ("sword-text-web", "sword-text-sparv")
_NOTES = re.compile(r"<note\b.*?</note>", re.DOTALL)
_BREAKS = re.compile(r"<[^>]*/>|</?(?:title|lg?|p|div)\b[^>]*>")
_TAGS = re.compile(r"<[^>]*>")
_BEFORE_MARKS = re.compile("\\s+(?=[,.;:!?)\u201d\u2019])")

Reference = tuple[str, int, int]


class Verse(NamedTuple):
    """One verse in both languages, in the order of `LANGUAGES`.

    Example:
        >>> Verse("John", ("Jesus wept.", "Y lloró Jesús.")).book
        'John'
    """

    book: str
    texts: tuple[str, str]


class Verses(NamedTuple):
    """The verses that both Bibles have, and how many only one has.

    Example:
        >>> Verses((), 3).unpaired
        3
    """

    pairs: tuple[Verse, ...]
    unpaired: int


def sword_folder(path: str) -> Path:
    """The folder that holds the modules: the one that is named, or where Debian installs them.

    Raises:
        UserError: they are not there; says how to install them, or to use them without.

    Example:
        >>> sword_folder("no/such/folder")
        Traceback (most recent call last):
        ...
        mixtura.errors.UserError: no/such/folder: expected a .tsv file or a folder with mods.d/engWEB2015eb.conf, ...
    """
    folder = Path(path).expanduser() if path else FOLDER
    missing = [module for module in MODULES if not (folder / "mods.d" / f"{module}.conf").is_file()]
    if missing:
        names = " ".join(PACKAGES)
        what = "a .tsv file or a folder" if path else "Bibles: a folder"
        raise UserError(
            f"{folder}: expected {what} with mods.d/{missing[0]}.conf, found none; "
            f"run: sudo apt-get install {names} (without root: apt-get download {names} && "
            "for f in sword-text-*.deb; do dpkg -x $f bibles; done, then --data.path bibles/usr/share/sword); "
            "or give your own texts: --data.source a.en --data.target a.es"
        )
    return folder


def read(folder: Path) -> Verses:
    """Both Bibles, verse by verse.

    Raises:
        UserError: pysword is not installed, or cannot read the modules.
    """
    english, spanish = (_verses(folder, module) for module in MODULES)
    both = [reference for reference in english if reference in spanish]
    pairs = tuple(Verse(reference[0], (english[reference], spanish[reference])) for reference in both)
    return Verses(pairs, len(english) + len(spanish) - 2 * len(both))


def plain(text: str) -> str:
    """A verse without its markup (OSIS): notes go, headings that belong to the text stay.

    Example:
        >>> plain('<w lemma="H0430">God</w><note>or</note><w>created</w><note>b</note>, <l/>all &amp; <q>sons</q>. ')
        'God created, all & sons.'
    """
    text = _TAGS.sub("", _BREAKS.sub(" ", _NOTES.sub(" ", text)))
    return _BEFORE_MARKS.sub("", " ".join(html.unescape(text).split()))


def _verses(folder: Path, module: str) -> Mapping[Reference, str]:
    """The verses of a module that have a text."""
    library = _library()
    try:
        modules = library.SwordModules(str(folder))
        modules.parse_modules()
        bible = modules.get_bible_from_module(module)
        verses = dict(_texts(bible))
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder}: cannot read the Bible {module}: {error}; install its package again") from error
    if not verses:
        raise UserError(f"{folder}: expected verses in the Bible {module}, got none; install its package again")
    return verses


def _texts(bible: Any) -> Iterator[tuple[Reference, str]]:
    if hasattr(bible, "_decompressed_text"):
        # A book is one compressed block, which the library would decompress again for each verse: 40 times the time.
        bible._decompressed_text = lru_cache(maxsize=1)(bible._decompressed_text)
    for books in bible.get_structure().get_books().values():
        for book in books:
            for chapter, length in enumerate(book.chapter_lengths, start=1):
                texts = bible.get_iter(books=[book.name], chapters=[chapter], clean=False)
                for verse, text in zip(range(1, length + 1), texts, strict=True):
                    if cleaned := plain(text):
                        yield (book.name, chapter, verse), cleaned


def _library() -> ModuleType:
    try:
        from pysword import modules
    except ImportError as error:
        raise UserError("reading the Bibles needs pysword; run: pip install 'mixtura[translate]'") from error
    library: ModuleType = modules
    return library
