"""Text <-> token ids: a byte-level BPE, learned and applied by the `tokenizers` library."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from mixtura.errors import UserError

if TYPE_CHECKING:
    from mixtura.train.data.arrays import TokenArray

END = "<|end|>"
# How the library's byte-level rule cuts ASCII text into the words that merges never cross.
_ASCII_WORD = re.compile(r"'(?:s|t|re|ve|m|ll|d)| ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]+|\s+(?!\S)|\s+", re.ASCII)
_MAX_WORDS = 1 << 20


class TextTokenizer:
    """A byte-level tokenizer: any text goes in and comes back unchanged; one more id marks the end of a document.

    The 257 smallest tokens are the end and the 256 bytes; the others are merges of bytes learned from text. Text that
    spells the end marker out is text like any other and never becomes the end id.

    Example:
        >>> tokenizer = TextTokenizer.train([], vocab_size=257)
        >>> tokenizer.vocab_size, tokenizer.end_id
        (257, 0)
        >>> tokenizer.decode(tokenizer.encode("naïve"))
        'naïve'
        >>> tokenizer.pieces(tokenizer.encode("né"))
        ['n', '\\\\xc3', '\\\\xa9']
    """

    def __init__(self, tokenizer: Any) -> None:
        tokenizer.encode_special_tokens = True
        byte_of = {letter: byte for byte, letter in enumerate(_byte_letters())}
        end_id = tokenizer.token_to_id(END)
        names = [tokenizer.id_to_token(i) for i in range(tokenizer.get_vocab_size())]
        known = all(name is not None and (name == END or set(name) <= byte_of.keys()) for name in names)
        if end_id is None or not known or not byte_of.keys() <= set(names):
            raise UserError(f"expected a byte-level tokenizer with the token {END}, got another one; use mixtura's own")
        self.end_id: int = end_id
        self.vocab_size = len(names)
        self._packed: dict[str, bytes] = {}
        self._tokenizer = tokenizer
        self._bytes = [b"" if i == end_id else bytes(map(byte_of.__getitem__, name)) for i, name in enumerate(names)]

    @classmethod
    def train(cls, texts: Iterable[str], *, vocab_size: int) -> TextTokenizer:
        """Learn merges from texts; 257 tokens learn nothing. Text too short for all the merges gives fewer tokens.

        Example:
            >>> tokenizer = TextTokenizer.train(["the cat and the hat and the bat"], vocab_size=260)
            >>> tokenizer.pieces(tokenizer.encode("the bat"))
            ['the', ' ', 'b', 'at']
        """
        library = _library()
        tokenizer = library.Tokenizer(library.models.BPE())
        tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = library.decoders.ByteLevel()
        trainer = library.trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[END],
            initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts if vocab_size > 257 else [], trainer)
        return cls(tokenizer)

    @classmethod
    def load(cls, path: str | Path) -> TextTokenizer:
        """Read a file that `save` wrote.

        Raises:
            UserError: when the file is missing or is not a byte-level tokenizer.

        Example:
            >>> import tempfile
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     TextTokenizer.train([], vocab_size=257).save(Path(folder, "tokenizer.json"))
            ...     TextTokenizer.load(Path(folder, "tokenizer.json")).encode("a")
            [65]
        """
        library = _library()
        try:
            text = Path(path).read_text(encoding="utf-8")
            json.loads(text)
            tokenizer = library.Tokenizer.from_str(text)
        except OSError as error:
            raise UserError(f"cannot read the tokenizer {path}: {error.strerror or error}") from error
        except Exception as error:
            # The library raises a bare Exception for every defect of a file.
            raise UserError(f"{path}: expected a tokenizer that mixtura wrote, got: {error}") from error
        return cls(tokenizer)

    def save(self, path: str | Path) -> None:
        """Write the tokenizer as one JSON file, which other programs with the `tokenizers` library read as well."""
        Path(path).write_text(self._tokenizer.to_str(), encoding="utf-8")

    @property
    def byte_lengths(self) -> tuple[int, ...]:
        """Bytes of text in each token, by id; 0 for the end. Turns nats per token into nats per byte."""
        return tuple(map(len, self._bytes))

    def encode(self, text: str) -> list[int]:
        """Turn text into ids.

        Raises:
            UserError: when the text holds half of a surrogate pair, which is not text.

        Example:
            >>> TextTokenizer.train([], vocab_size=257).encode("<|end|>")[:2]
            [28, 92]
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UserError(f"expected Unicode text, got half of a surrogate pair at {error.start}") from error
        ids: list[int] = self._tokenizer.encode(text).ids
        return ids

    def encode_documents(self, texts: Sequence[str]) -> TokenArray:
        """Turn documents into one array of ids, the end id after each; fast for many documents at once.

        Example:
            >>> TextTokenizer.train([], vocab_size=257).encode_documents(["a", "b"]).tolist()
            [65, 0, 66, 0]
        """
        from mixtura.train.data import arrays

        if self.vocab_size == 257:
            # Without merges each byte is one token.
            id_of_byte = [self._tokenizer.token_to_id(letter) for letter in _byte_letters()]
            return arrays.from_bytes([text.encode() for text in texts], id_of_byte, end_id=self.end_id)
        # Encoding each distinct word once is four times faster than encoding the texts, and gives the same ids.
        words_of = [_ASCII_WORD.findall(text) if text.isascii() else [text] for text in texts]
        new = list(set().union(*words_of) - self._packed.keys())
        for word, encoding in zip(new, self._tokenizer.encode_batch_fast(new), strict=True):
            self._packed[word] = arrays.pack(encoding.ids, vocab_size=self.vocab_size)
        end = arrays.pack([self.end_id], vocab_size=self.vocab_size)
        packed = [b"".join(map(self._packed.__getitem__, words)) + end for words in words_of]
        for text in texts:
            self._packed.pop(text, None)
        if len(self._packed) > _MAX_WORDS:
            self._packed.clear()
        return arrays.unpack(packed, vocab_size=self.vocab_size)

    def decode(self, ids: Iterable[int]) -> str:
        """Turn ids into text; ends vanish, and bytes that are not UTF-8 become U+FFFD.

        Example:
            >>> TextTokenizer.train([], vocab_size=257).decode([65, 0, 66])
            'ab'
        """
        return b"".join(map(self._bytes_of, ids)).decode(errors="replace")

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """The text of each token by itself, for people: parts of a character as escapes, the end as its marker."""
        return [END if i == self.end_id else self._bytes_of(i).decode(errors="backslashreplace") for i in ids]

    def stream(self, ids: Iterable[int]) -> Iterator[str]:
        """Decode ids while they come; text is handed out as soon as its bytes are whole characters.

        Example:
            >>> tokenizer = TextTokenizer.train([], vocab_size=257)
            >>> list(tokenizer.stream(tokenizer.encode("né!")))
            ['n', 'é', '!']
        """
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        for i in ids:
            if text := decoder.decode(self._bytes_of(i)):
                yield text
        if text := decoder.decode(b"", final=True):
            yield text

    def _bytes_of(self, token: int) -> bytes:
        if not 0 <= token < self.vocab_size:
            raise UserError(f"expected token ids from 0 to {self.vocab_size - 1}, got {token}")
        return self._bytes[token]


def _byte_letters() -> list[str]:
    """The letter that stands for each byte in a byte-level vocabulary: itself if visible, else one from 256 on."""
    visible = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    hidden = [byte for byte in range(256) if byte not in visible]
    return [chr(byte) if byte in visible else chr(256 + hidden.index(byte)) for byte in range(256)]


def _library() -> ModuleType:
    try:
        import tokenizers
    except ImportError as error:
        raise UserError("text models need the tokenizers library; run: pip install 'mixtura[train]'") from error
    return tokenizers
