"""What to train on and how it is cut: the `--data.*` section of a run."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from mixtura.errors import UserError


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the text comes from, how it becomes tokens, and how tokens become batches.

    Raises:
        UserError: when a value is out of its range.

    Example:
        >>> DataConfig(vocab_size=1024).seq_len
        128
        >>> DataConfig(vocab_size=100)
        Traceback (most recent call last):
        ...
        mixtura.errors.UserError: data.vocab_size: expected 257 (bytes and end of document) to 4194304, got 100
    """

    path: str = ""
    """Text to train on: a .txt, .md, .jsonl, .csv or .parquet file, a folder, or a glob. Empty: the embedded corpus."""
    embedded: Literal["kind", "package"] = "kind"
    """Domains of the embedded corpus: kinds of text, or the packages of the standard library."""
    text_column: str = "text"
    """The column (or JSON key) that holds a document's text in .jsonl, .csv and .parquet files."""
    domain_column: str = ""
    """The column (or JSON key) that names a document's domain. Empty: the domain comes from the file or its folder."""
    tokenizer: str = ""
    """A tokenizer.json to use; that of a run, to train its model further. Empty: one is learned from the text."""
    vocab_size: int = 257
    """Tokens at most: 256 bytes and the end of a document, and beyond 257 byte-pair merges learned from the text."""
    seq_len: int = 128
    """Tokens in one training window."""
    batch_size: int = 32
    """Windows in one micro-step on one device."""
    val_fraction: float = 0.05
    """Share of every domain's bytes held out for validation, in whole documents (0 to 0.5)."""
    val_tokens: int = 65536
    """Held-out tokens evaluated per domain, at most."""
    cache: str = ".cache/mixtura"
    """Folder for the tokens, so that the next start takes less than a second."""
    domains: tuple[str, ...] = ()
    """Train on and evaluate these domains only; the tokens are still those of all the text. Empty: all domains."""
    clusters: int = 0
    """In place of the text's own domains, so many clusters of documents that are alike. 0: the text's own."""
    max_mb: float = 0
    """Megabytes (10^6 bytes) of text to use per domain, at most. 0: all."""
    seed: int = 0
    """Chooses the held-out documents and the order of training windows."""

    MIN_VOCAB: ClassVar[int] = 257
    MAX_VOCAB: ClassVar[int] = 1 << 22

    def __post_init__(self) -> None:
        if not self.MIN_VOCAB <= self.vocab_size <= self.MAX_VOCAB:
            raise UserError(
                f"data.vocab_size: expected {self.MIN_VOCAB} (bytes and end of document) to {self.MAX_VOCAB}, "
                f"got {self.vocab_size}"
            )
        for name in ("seq_len", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"data.{name}: expected at least 1, got {getattr(self, name)}")
        if not 0 < self.val_fraction <= 0.5:
            raise UserError(f"data.val_fraction: expected more than 0 and at most 0.5, got {self.val_fraction}")
        if self.val_tokens < self.seq_len:
            raise UserError(
                f"data.val_tokens: expected at least one window (data.seq_len = {self.seq_len}), got {self.val_tokens}"
            )
        if self.max_mb != 0 and not (math.isfinite(self.max_mb) and self.max_mb >= 0.001):
            raise UserError(f"data.max_mb: expected 0 (all the text) or at least 0.001, got {self.max_mb}")
        if self.clusters < 0 or self.clusters == 1:
            raise UserError(f"data.clusters: expected 0 or at least 2, got {self.clusters}")
        if self.seed < 0:
            raise UserError(f"data.seed: expected 0 or more, got {self.seed}")
        for name in ("text_column", "cache"):
            if not getattr(self, name):
                raise UserError(f"data.{name}: expected a name, got an empty string")
