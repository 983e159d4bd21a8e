"""Aligned texts: where pairs of sentences come from, what is held out, and what was left out, counted."""

import gzip
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

from mixtura.errors import UserError
from mixtura.train.data import bibles
from mixtura.train.data.config import DataConfig

_LANGUAGE = re.compile(r"\w+", re.ASCII)
_HEADER = ("source", "target", "source_language", "target_language")


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """Where aligned texts come from, how they become tokens, and how tokens become batches.

    Raises:
        UserError: when a value is out of its range.

    Example:
        >>> ParallelConfig(source=("news.en",), target=("news.de",)).both_ways
        True
    """

    path: str = ""
    """A .tsv file (also .tsv.gz) of rows source, target, and perhaps source language, target language; or a folder with
    the English and the Spanish Bible (usr/share/sword of their packages). Empty: where Debian installs those."""
    source: tuple[str, ...] = ()
    """Text files (also .gz), one sentence a line."""
    target: tuple[str, ...] = ()
    """As many files, whose lines are the translations of the lines there."""
    pairs: tuple[str, ...] = ()
    """Languages of each pair of files, or of a .tsv without them: en-es. Empty: the endings of the files' names."""
    both_ways: bool = True
    """Also learn from target to source; what a model is asked for is told by a token before the source."""
    held_out: tuple[str, ...] = ("Ruth", "Esther", "Jonah", "James", "I John")
    """Of the Bibles: the books to judge by."""
    val_fraction: float = 0.05
    """Of other texts: the share of all pairs to judge by (0 to 0.5)."""
    val_pairs: int = 1000
    """Pairs of each direction to judge by, at most."""
    tokenizer: str = ""
    """A tokenizer.json to use; that of a run, to train its model further. Empty: one is learned from all languages."""
    vocab_size: int = 4096
    """Tokens at most: 256 bytes and the end of a text, and beyond 257 byte-pair merges, shared by all languages."""
    max_tokens: int = 100
    """Pairs with a side of more tokens are left out, and counted."""
    batch_tokens: int = 2048
    """Tokens of one side in one micro-step on one device, padding included."""
    seed: int = 0
    """Chooses the order of training pairs, and those held out of texts other than the Bibles."""

    def __post_init__(self) -> None:
        if bool(self.path) and bool(self.source or self.target):
            raise UserError(f"expected --data.path or --data.source with --data.target, got both ({self.path!r})")
        if len(self.source) != len(self.target):
            raise UserError(
                f"expected as many files in --data.target as in --data.source, got {len(self.target)} and "
                f"{len(self.source)}"
            )
        if not DataConfig.MIN_VOCAB <= self.vocab_size <= DataConfig.MAX_VOCAB:
            raise UserError(
                f"data.vocab_size: expected {DataConfig.MIN_VOCAB} (bytes and end of text) to {DataConfig.MAX_VOCAB}, "
                f"got {self.vocab_size}"
            )
        for name in ("max_tokens", "val_pairs"):
            if getattr(self, name) < 1:
                raise UserError(f"data.{name}: expected at least 1, got {getattr(self, name)}")
        if self.batch_tokens < self.max_tokens + 2:
            raise UserError(
                f"data.batch_tokens: expected at least data.max_tokens + 2 = {self.max_tokens + 2}, "
                f"got {self.batch_tokens}"
            )
        if not 0 < self.val_fraction <= 0.5:
            raise UserError(f"data.val_fraction: expected more than 0 and at most 0.5, got {self.val_fraction}")
        if self.seed < 0:
            raise UserError(f"data.seed: expected 0 or more, got {self.seed}")
        for pair in self.pairs:
            languages_of(pair)


class Pair(NamedTuple):
    """Two sentences that say the same, and the languages they say it in.

    Example:
        >>> Pair("en", "es", "Yes.", "Sí.").direction
        'en-es'
    """

    source_language: str
    target_language: str
    source: str
    target: str

    @property
    def direction(self) -> str:
        """From which language to which."""
        return f"{self.source_language}-{self.target_language}"

    def turned(self) -> "Pair":
        """The other way."""
        return Pair(self.target_language, self.source_language, self.target, self.source)


@dataclass(frozen=True, kw_only=True)
class PairReading:
    """What was read.

    Attributes:
        train: pairs to learn from.
        val: pairs to judge by; none is among the others.
        skipped: how many were left out, (reason, count).

    Example:
        >>> PairReading(train=(), val=(), skipped=(("empty", 2),)).left_out()
        'left out: 2 empty'
    """

    train: tuple[Pair, ...]
    val: tuple[Pair, ...]
    skipped: tuple[tuple[str, int], ...] = ()

    def left_out(self) -> str:
        """The count of each reason to leave a pair out."""
        return "left out: " + (", ".join(f"{count:,} {reason}" for reason, count in self.skipped) or "none")


def languages_of(pair: str) -> tuple[str, str]:
    """The two languages of "en-es".

    Raises:
        UserError: it is not of that form, or the languages are one.

    Example:
        >>> languages_of("en-es")
        ('en', 'es')
    """
    names = pair.split("-")
    if len(names) != 2 or names[0] == names[1] or not all(_LANGUAGE.fullmatch(name) for name in names):
        raise UserError(f"expected two languages like en-es, of letters, digits and _, got {pair!r}")
    return names[0], names[1]


def read_pairs(config: ParallelConfig) -> PairReading:
    """Read the texts that a configuration names, leave out what is empty or repeated, and hold some out.

    Raises:
        UserError: nothing there; files of unequal length, or not of UTF-8; a row without its columns; a direction
            without pairs for both parts.
    """
    skipped: Counter[str] = Counter()
    if config.source:
        train, val = _divided(_files(config), config)
    elif _is_table(config.path):
        train, val = _divided(_table(Path(config.path).expanduser(), config.pairs), config)
    else:
        train, val = _bibles(config, skipped)
    seen: set[Pair] = set()
    parts = {
        name: tuple(_distinct(pairs, seen, skipped, both_ways=config.both_ways))
        for name, pairs in (("val", val), ("train", train))  # what is held out is not learned from
    }
    reading = PairReading(**parts, skipped=tuple(sorted(skipped.items())))
    _check_directions(reading)
    return reading


def _is_table(path: str) -> bool:
    return path.removesuffix(".gz").endswith(".tsv")


def _distinct(pairs: Iterable[Pair], seen: set[Pair], skipped: Counter[str], *, both_ways: bool) -> Iterator[Pair]:
    """Each direction of the pairs that are neither blank nor known."""
    for pair in pairs:
        if not pair.source.strip() or not pair.target.strip():
            skipped["empty"] += 1
            continue
        for way in (pair, pair.turned()) if both_ways else (pair,):
            if way in seen:
                skipped["repeated"] += 1
            else:
                seen.add(way)
                yield way


def _check_directions(reading: PairReading) -> None:
    counts = [Counter(pair.direction for pair in pairs) for pairs in (reading.train, reading.val)]
    if not any(counts):
        raise UserError(f"expected pairs of sentences, got none; {reading.left_out()}")
    for direction in sorted({*counts[0], *counts[1]}):
        if not (counts[0][direction] and counts[1][direction]):
            raise UserError(
                f"{direction}: expected pairs to learn from and to be judged by, got {counts[0][direction]} and "
                f"{counts[1][direction]}; add some, or change --data.val-fraction"
            )


def _divided(found: Iterable[Pair], config: ParallelConfig) -> tuple[list[Pair], list[Pair]]:
    """To learn from, and to be judged by: all pairs together that say the same in the language that most of them have.

    Both directions of a pair are then in one part, and so are a sentence's translations to several languages.
    """
    parts: tuple[list[Pair], list[Pair]] = [], []
    pairs = list(found)
    counts = Counter(language for pair in pairs for language in pair[:2])
    for pair in pairs:
        _, text = max(zip(pair[:2], pair[2:], strict=True), key=lambda side: (counts[side[0]], side[0]))
        key = blake2b(f"{config.seed}\0{text}".encode(), digest_size=8).digest()
        parts[int.from_bytes(key, "big") < config.val_fraction * 2**64].append(pair)
    return parts


def _bibles(config: ParallelConfig, skipped: Counter[str]) -> tuple[list[Pair], list[Pair]]:
    folder = bibles.sword_folder(config.path)
    verses = bibles.read(folder)
    skipped["verses in one Bible only"] += verses.unpaired
    books = {verse.book for verse in verses.pairs}
    if not config.held_out or (unknown := sorted({*config.held_out} - books)):
        raise UserError(
            f"data.held_out: expected some of {', '.join(sorted(books))}; got {', '.join(unknown) or 'none'}"
            if config.held_out
            else "data.held_out: expected at least one book, got none"
        )
    parts: tuple[list[Pair], list[Pair]] = [], []
    for verse in verses.pairs:
        parts[verse.book in config.held_out].append(Pair(*bibles.LANGUAGES, *verse.texts))
    return parts


def _files(config: ParallelConfig) -> Iterator[Pair]:
    if config.pairs and len(config.pairs) != len(config.source):
        raise UserError(
            f"expected --data.pairs with one for each of {len(config.source)} pairs of files, got {len(config.pairs)}"
        )
    for number, names in enumerate(zip(config.source, config.target, strict=True)):
        paths = [Path(name).expanduser() for name in names]
        if config.pairs:
            languages = languages_of(config.pairs[number])
        else:
            endings = [Path(path.name.removesuffix(".gz")).suffix[1:] for path in paths]
            if endings[0] == endings[1] or not all(map(_LANGUAGE.fullmatch, endings)):
                raise UserError(
                    f"{paths[0]} and {paths[1]}: expected names that end in two languages, like news.en and news.es; "
                    "or name them: --data.pairs en-es"
                )
            languages = endings[0], endings[1]
        sides = [read_lines(path) for path in paths]
        if len(sides[0]) != len(sides[1]):
            raise UserError(
                f"{paths[0]} and {paths[1]}: expected as many lines, got {len(sides[0])} and {len(sides[1])}; "
                "each line of one must be the translation of the same line of the other"
            )
        for texts in zip(*sides, strict=True):
            yield Pair(*languages, *texts)


def _table(path: Path, pairs: Sequence[str]) -> Iterator[Pair]:
    """Rows of a .tsv; a first row that names the columns is none."""
    if len(pairs) > 1:
        raise UserError(f"expected one of --data.pairs for {path}, got {len(pairs)}; give the languages in its rows")
    for number, line in enumerate(read_lines(path), start=1):
        cells = line.split("\t")
        if number == 1 and tuple(cells) in (_HEADER, _HEADER[:2]):
            continue
        if not line.strip():
            yield Pair("", "", "", "")
        elif len(cells) == len(_HEADER):
            where = f"{path}, line {number}, columns 3 and 4"
            try:
                yield Pair(*languages_of(f"{cells[2]}-{cells[3]}"), cells[0], cells[1])
            except UserError as error:
                raise UserError(f"{where}: {error}") from error
        elif len(cells) != 2:
            raise UserError(
                f"{path}, line {number}: expected 2 columns (source, target) or 4 (and their languages) "
                f"parted by tabs, got {len(cells)}"
            )
        elif not pairs:
            raise UserError(
                f"{path}, line {number}: expected columns 3 and 4 with the languages, got 2 columns; "
                "or name them: --data.pairs en-es"
            )
        else:
            yield Pair(*languages_of(pairs[0]), cells[0], cells[1])


def read_lines(path: Path) -> list[str]:
    r"""The lines of a UTF-8 file, also a compressed one, without their ends; only a line feed ends a line.

    Other characters that Python takes for the end of a line, U+2028 for instance, would shift one side's lines.

    Raises:
        UserError: it cannot be read, or is not of UTF-8; names the line and the byte in it.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "a.en").write_bytes("one\u2028 still one\r\ntwo\n".encode())
        ...     read_lines(Path(folder, "a.en"))
        ['one\u2028 still one', 'two']
    """
    try:
        data = path.read_bytes()
        if path.suffix == ".gz":
            data = gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    lines = []
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").removesuffix(b"\n").split(b"\n"), start=1):
        try:
            lines.append(line.removesuffix(b"\r").decode())
        except UnicodeDecodeError as error:
            raise UserError(
                f"{path}, line {number}, byte {error.start + 1}: expected UTF-8 text, got 0x{line[error.start]:02x}; "
                "convert it: iconv -f LATIN1 -t UTF-8"
            ) from error
    return lines if data else []
