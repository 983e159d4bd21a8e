"""A configuration -> the corpus as token files, made once and found again on the next start."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from mixtura.errors import UserError
from mixtura.train.data.config import DataConfig
from mixtura.train.data.documents import Document, Sources, embedded_sources, read_sources, user_sources
from mixtura.train.data.split import Split, split_documents
from mixtura.train.data.tokenizer import TextTokenizer
from mixtura.train.files import new_folder, write_file

if TYPE_CHECKING:
    from mixtura.train.data.arrays import TokenArray

# Part of every key: raise it when the same text and configuration give other files.
_VERSION = 1
_BATCH_LETTERS = 1 << 22
_SAMPLE_LETTERS = 1 << 23
_SAMPLE_LETTERS_PER_TOKEN = 1 << 11


class SummaryRow(NamedTuple):
    """One domain of a corpus in numbers; megabytes are 10^6 bytes of UTF-8."""

    domain: str
    train_documents: int
    train_mb: float
    val_documents: int
    val_mb: float
    train_tokens: int
    val_tokens: int


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Token ids of every domain's training and held-out text, mapped from files.

    Shapes: each array of `train` and `val` is one row of ids (uint16, or uint32 for more than 65536 tokens), documents
    in order, the end id after each. `bytes_per_token` is that of the held-out text, ends included. `report` says how
    many documents were read and what was left out.
    """

    domains: tuple[str, ...]
    train: Mapping[str, TokenArray]
    val: Mapping[str, TokenArray]
    bytes_per_token: Mapping[str, float]
    tokenizer: TextTokenizer
    folder: Path
    rows: tuple[SummaryRow, ...]
    report: str

    def summary(self) -> list[SummaryRow]:
        """One row of numbers per domain, in the order of `domains`."""
        return list(self.rows)


def prepare(config: DataConfig, *, on_progress: Callable[[str], None] | None = None) -> Corpus:
    """Read, split, tokenize and cache the text of a configuration; open the cache where nothing has changed.

    Args:
        config: what to read and how to cut it; only what concerns the tokens is part of the cache's key.
        on_progress: gets a line for people at every step that takes time.

    Raises:
        UserError: when the text cannot be read, is too short for one batch or one held-out window, or the disk is full.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "poem.txt").write_text("\\n\\n".join(f"verse {i}" for i in range(200)))
        ...     config = DataConfig(path=f"{folder}/poem.txt", seq_len=16, batch_size=4, cache=f"{folder}/cache")
        ...     corpus = prepare(config)
        >>> corpus.domains, corpus.tokenizer.decode(corpus.train["poem"][:7].tolist())
        (('poem',), 'verse 0')
    """
    say = on_progress or (lambda _: None)
    cache = Path(config.cache).expanduser()
    sources = user_sources(config.path) if config.path else embedded_sources(by=config.embedded)
    index = cache / "index" / _source_key(config, sources)
    corpus = _find(cache, index)
    if corpus is None:
        say(f"reading {len(sources.files)} files")
        reading = read_sources(sources, text_column=config.text_column, domain_column=config.domain_column)
        say(reading.report())
        folder = cache / _fingerprint(config, reading.documents)
        corpus = open_corpus(folder)
        while corpus is None:
            # Once, unless another process repairs the same damaged folder at the same moment.
            _build(config, reading.documents, reading.report(), folder, say)
            corpus = open_corpus(folder)
        write_file(index, folder.name)
    corpus = _only(_clustered(corpus, config, say) if config.clusters else corpus, config.domains)
    _check_lengths(corpus, config)
    return corpus


def _clustered(corpus: Corpus, config: DataConfig, say: Callable[[str], None]) -> Corpus:
    """The same tokens with clusters of documents as domains, made once and found again."""
    folder = corpus.folder.with_name(f"{corpus.folder.name}-{config.clusters}-clusters")
    found = open_corpus(folder)
    while found is None:
        say(f"grouping documents into {config.clusters} clusters")
        with new_folder(folder, what="the clusters", is_whole=_is_whole) as temporary:
            _write_clusters(corpus, config, temporary)
        found = open_corpus(folder)
    return found


def _write_clusters(corpus: Corpus, config: DataConfig, folder: Path) -> None:
    from mixtura.train.data import arrays, clusters

    end_id, lengths = corpus.tokenizer.end_id, corpus.tokenizer.byte_lengths
    parts = {
        name: [document for domain in corpus.domains for document in clusters.split_at(tokens[domain], end_id)]
        for name, tokens in (("train", corpus.train), ("val", corpus.val))
    }
    if len(parts["train"]) < config.clusters:
        raise UserError(f"data.clusters: expected at most {len(parts['train'])} (documents), got {config.clusters}")
    counts = {name: clusters.features(documents) for name, documents in parts.items()}
    found = clusters.centres_of(counts["train"], config.clusters, seed=config.seed)
    numbers = {name: clusters.nearest(count, *found).tolist() for name, count in counts.items()}
    rows = []
    for cluster in range(config.clusters):
        mine = {
            name: [document for document, number in zip(parts[name], numbers[name], strict=True) if number == cluster]
            for name in parts
        }
        if not all(mine.values()):
            raise UserError(
                f"data.clusters: expected text to learn and to be judged by in each, got none in number {cluster}; "
                "take fewer, or raise --data.val_fraction"
            )
        sizes = [arrays.save(folder / f"{name}-{cluster:04d}.npy", part) for name, part in mine.items()]
        megabytes = [sum(lengths[t] for document in part for t in document.tolist()) / 1e6 for part in mine.values()]
        name = f"cluster-{cluster}"
        rows.append(SummaryRow(name, len(mine["train"]), megabytes[0], len(mine["val"]), megabytes[1], *sizes))
    corpus.tokenizer.save(folder / "tokenizer.json")
    meta = {"version": _VERSION, "report": corpus.report, "rows": [row._asdict() for row in rows]}
    (folder / "meta.json").write_text(json.dumps(meta, indent=1), encoding="utf-8")


def _only(corpus: Corpus, domains: Sequence[str]) -> Corpus:
    if unknown := sorted({*domains} - {*corpus.domains}):
        raise UserError(f"data.domains: expected some of {', '.join(corpus.domains)}, got {', '.join(unknown)}")
    if not domains:
        return corpus
    return replace(
        corpus,
        domains=tuple(domain for domain in corpus.domains if domain in domains),
        rows=tuple(row for row in corpus.rows if row.domain in domains),
    )


def open_corpus(folder: Path) -> Corpus | None:
    """Open a folder that `prepare` wrote; None when it is missing, cut short or unreadable, so that it is made again.

    Example:
        >>> open_corpus(Path("no/such/folder")) is None
        True
    """
    from mixtura.train.data import arrays

    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        rows = tuple(SummaryRow(**row) for row in meta["rows"])
        train = {row.domain: arrays.load(folder / f"train-{i:04d}.npy") for i, row in enumerate(rows)}
        val = {row.domain: arrays.load(folder / f"val-{i:04d}.npy") for i, row in enumerate(rows)}
        tokenizer = TextTokenizer.load(folder / "tokenizer.json")
        report = str(meta["report"])
    except (OSError, EOFError, ValueError, KeyError, TypeError):
        return None
    if not rows or any(
        (len(train[row.domain]), len(val[row.domain])) != (row.train_tokens, row.val_tokens) for row in rows
    ):
        return None
    return Corpus(
        domains=tuple(row.domain for row in rows),
        train=train,
        val=val,
        bytes_per_token={row.domain: row.val_mb * 1e6 / row.val_tokens for row in rows},
        tokenizer=tokenizer,
        folder=folder,
        rows=rows,
        report=report,
    )


def _is_whole(folder: Path) -> bool:
    return open_corpus(folder) is not None


def _build(
    config: DataConfig, documents: Sequence[Document], report: str, folder: Path, say: Callable[[str], None]
) -> None:
    splits = split_documents(
        documents, val_fraction=config.val_fraction, max_bytes=config.max_mb * 1e6, seed=config.seed
    )
    tokenizer = _tokenizer(config, splits, say)
    with new_folder(folder, what="the tokens", is_whole=_is_whole) as temporary:
        tokenizer.save(temporary / "tokenizer.json")
        rows = []
        for i, (domain, split) in enumerate(splits.items()):
            say(f"encoding {domain}")
            rows.append(_encode(tokenizer, domain, split, temporary, i))
        meta = {"version": _VERSION, "report": report, "rows": [row._asdict() for row in rows]}
        (temporary / "meta.json").write_text(json.dumps(meta, indent=1), encoding="utf-8")


def _tokenizer(config: DataConfig, splits: Mapping[str, Split], say: Callable[[str], None]) -> TextTokenizer:
    """The given one, or one that is learned from the training text."""
    if config.tokenizer:
        return TextTokenizer.load(config.tokenizer)
    if config.vocab_size > config.MIN_VOCAB:
        say(f"learning {config.vocab_size} tokens")
    tokenizer = TextTokenizer.train(_sample(splits, config.vocab_size), vocab_size=config.vocab_size)
    if tokenizer.vocab_size < config.vocab_size:
        say(f"the text is too short for {config.vocab_size} tokens: learned {tokenizer.vocab_size}")
    return tokenizer


def _sample(splits: Mapping[str, Split], vocab_size: int) -> list[str]:
    """Every n-th training document: frequent pairs show in megabytes, and counting gigabytes would take minutes."""
    texts = [document.text for split in splits.values() for document in split.train]
    wanted = max(_SAMPLE_LETTERS, _SAMPLE_LETTERS_PER_TOKEN * vocab_size)
    return texts[:: math.ceil(sum(map(len, texts)) / wanted)]


def _encode(tokenizer: TextTokenizer, domain: str, split: Split, folder: Path, number: int) -> SummaryRow:
    from mixtura.train.data import arrays

    tokens, megabytes = [], []
    for name, documents in (("train", split.train), ("val", split.val)):
        parts = [tokenizer.encode_documents(texts) for texts in _batches(documents)]
        tokens.append(arrays.save(folder / f"{name}-{number:04d}.npy", parts))
        megabytes.append(sum(len(document.text.encode()) for document in documents) / 1e6)
    return SummaryRow(domain, len(split.train), megabytes[0], len(split.val), megabytes[1], *tokens)


def _batches(documents: Sequence[Document]) -> Iterator[list[str]]:
    """Texts in order, some megabytes at a time: the library's own record of each token takes far more than the id."""
    texts: list[str] = []
    size = 0
    for document in documents:
        texts.append(document.text)
        size += len(document.text)
        if size >= _BATCH_LETTERS:
            yield texts
            texts, size = [], 0
    if texts:
        yield texts


def _find(cache: Path, index: Path) -> Corpus | None:
    try:
        name = index.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    return open_corpus(cache / name) if name else None


def _source_key(config: DataConfig, sources: Sources) -> str:
    """Changes when a file comes, goes, or gets another size or time: then the text is read again."""
    key = blake2b(_token_settings(config), digest_size=16)
    for source in sources.files:
        try:
            state = source.file.stat()
        except OSError as error:
            raise UserError(f"cannot read {source.file}: {error.strerror or error}") from error
        key.update(f"{source.file.absolute()}\0{source.domain}\0{state.st_size}\0{state.st_mtime_ns}\n".encode())
    return key.hexdigest()


def _fingerprint(config: DataConfig, documents: Sequence[Document]) -> str:
    key = blake2b(_token_settings(config), digest_size=16)
    for document in documents:
        text = document.text.encode()
        key.update(json.dumps([document.domain, document.name, len(text)]).encode())
        key.update(text)
    return key.hexdigest()


def _token_settings(config: DataConfig) -> bytes:
    """Every setting that the tokens depend on, and not where the text lies or how it is cut into windows."""
    names = ("text_column", "domain_column", "vocab_size", "val_fraction", "max_mb", "seed")
    settings = [_VERSION, *(getattr(config, name) for name in names)]
    if config.tokenizer:
        TextTokenizer.load(config.tokenizer)  # refuses what is none
        settings.append(blake2b(Path(config.tokenizer).read_bytes(), digest_size=16).hexdigest())
    return json.dumps(settings).encode()


def _check_lengths(corpus: Corpus, config: DataConfig) -> None:
    """Every domain must give a window to learn from and one to be judged by, and all together one batch."""
    window = config.seq_len + 1
    for row in corpus.rows:
        for part, tokens in (("training", row.train_tokens), ("held-out", row.val_tokens)):
            if tokens < window:
                change = "raise --data.val_fraction, " if part == "held-out" else ""
                raise UserError(
                    f"domain {row.domain!r}: expected at least {window} {part} tokens (data.seq_len + 1), "
                    f"got {tokens}; {change}lower --data.seq_len or add text"
                )
    total = sum(row.train_tokens for row in corpus.rows)
    if total < config.batch_size * window:
        raise UserError(
            f"expected at least {config.batch_size * window} training tokens, one batch of {config.batch_size} windows "
            f"of {window}, got {total}; lower --data.batch_size or --data.seq_len, or add text"
        )
