"""Token ids as numpy arrays, in memory and on disk; import it late, for numpy is optional."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeAlias, cast

from mixtura.errors import UserError

try:
    import numpy as np
    import numpy.typing as npt
except ImportError as error:
    raise UserError("preparing text needs numpy; run: pip install 'mixtura[train]'") from error

TokenArray: TypeAlias = npt.NDArray[np.unsignedinteger[Any]]
IdArray: TypeAlias = npt.NDArray[np.int64]


def id_type(vocab_size: int) -> type[np.unsignedinteger[Any]]:
    """The smallest type of those on disk that holds every id.

    Example:
        >>> id_type(257).__name__, id_type(65536).__name__, id_type(65537).__name__
        ('uint16', 'uint16', 'uint32')
    """
    return np.uint16 if vocab_size <= 1 << 16 else np.uint32


def pack(ids: Sequence[int], *, vocab_size: int) -> bytes:
    """The ids as they lie in a file.

    Example:
        >>> unpack([pack([5, 6], vocab_size=257), pack([0], vocab_size=257)], vocab_size=257).tolist()
        [5, 6, 0]
    """
    return np.array(ids, dtype=id_type(vocab_size)).tobytes()


def unpack(packed: Iterable[bytes], *, vocab_size: int) -> TokenArray:
    """Join packed ids into one array."""
    return np.frombuffer(b"".join(packed), dtype=id_type(vocab_size))


def from_bytes(texts: Sequence[bytes], id_of_byte: Sequence[int], *, end_id: int) -> TokenArray:
    """The ids of texts where every byte is one token, the end id after each text: one table look-up for all.

    Example:
        >>> from_bytes([b"ab", b"c"], range(1, 257), end_id=0).tolist()
        [98, 99, 0, 100, 0]
    """
    # UTF-8 never holds the byte 0xff, so that it can stand for the end.
    table = np.array([*id_of_byte[:255], end_id], dtype=np.uint16)
    return cast("TokenArray", table[np.frombuffer(b"".join(text + b"\xff" for text in texts), dtype=np.uint8)])


def save(path: Path, parts: Sequence[TokenArray]) -> int:
    """Write the parts as one .npy file and return its number of tokens.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(Path(folder, "x.npy"), [np.arange(3, dtype="uint16"), np.arange(2, dtype="uint16")])
        5
    """
    tokens = sum(map(len, parts))
    header = {"descr": np.lib.format.dtype_to_descr(parts[0].dtype), "fortran_order": False, "shape": (tokens,)}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for part in parts:
            # Not ndarray.tofile: its error for a full disk has no errno.
            file.write(part.data)
    return tokens


def windows(tokens: Sequence[TokenArray], *, rows: Sequence[int], starts: Sequence[int], length: int) -> IdArray:
    """Copy `length` ids of row `rows[i]` from `starts[i]` on, for every i: (windows, length), int64.

    Example:
        >>> windows([np.arange(9, dtype="uint16")], rows=[0, 0], starts=[1, 5], length=3).tolist()
        [[1, 2, 3], [5, 6, 7]]
    """
    parts = [tokens[row][start : start + length] for row, start in zip(rows, starts, strict=True)]
    return np.stack(parts).astype(np.int64)


def load(path: Path) -> TokenArray:
    """Map a file of `save` into memory, read-only.

    Raises:
        ValueError: when the file is cut short or holds something else.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = save(Path(folder, "x.npy"), [np.arange(3, dtype="uint16")])
        ...     load(Path(folder, "x.npy")).tolist()
        [0, 1, 2]
    """
    array = np.lib.format.open_memmap(path, mode="r")
    if array.ndim != 1 or array.dtype not in (np.uint16, np.uint32):
        raise ValueError(f"{path}: expected one row of token ids, got shape {array.shape} of {array.dtype}")
    # A plain view: indexing a memmap costs several microseconds more than indexing an array.
    return array.view(np.ndarray)


def pieces(tokens: Sequence[TokenArray], rows: Sequence[tuple[int, int, int]]) -> IdArray:
    """The ids of pieces, each (row of `tokens`, first, number of ids), one after another.

    Example:
        >>> pieces([np.arange(9, dtype="uint16")], [(0, 1, 2), (0, 7, 1)]).tolist()
        [1, 2, 7]
    """
    return np.concatenate([tokens[row][start : start + length] for row, start, length in rows]).astype(np.int64)


def chunk_places(ids: TokenArray, *, end_id: int, length: int) -> IdArray:
    """First id and number of ids of every chunk of at most `length`, none over the end of a document: (N, 2).

    Example:
        >>> chunk_places(np.array([5, 6, 7, 0, 8, 0], dtype="uint16"), end_id=0, length=2).tolist()
        [[0, 2], [2, 1], [4, 1]]
    """
    end_D = np.flatnonzero(ids == end_id)
    start_D = np.concatenate([[0], end_D[:-1] + 1]).astype(np.int64)
    size_D = end_D - start_D
    chunks_D = -(-size_D // length)
    first_N = np.repeat(start_D, chunks_D)
    number_N = np.arange(chunks_D.sum()) - np.repeat(chunks_D.cumsum() - chunks_D, chunks_D)
    start_N = first_N + number_N * length
    return np.stack([start_N, np.minimum(length, np.repeat(end_D, chunks_D) - start_N)], axis=1)
