"""Labelled texts -> batches: documents cut into chunks that keep their label, padded where they are short."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mixtura.train.data.shuffle import ShuffledStream

if TYPE_CHECKING:
    from mixtura.train.data.arrays import TokenArray
    from mixtura.train.data.tokens import Corpus


@dataclass(frozen=True)
class TextBatch:
    """Texts as models take them, and their labels.

    Shapes: ids int64 (B, L), the end id behind shorter texts; mask bool (B, L), False there; labels int64 (B,).

    Example:
        >>> TextBatch(torch.zeros(2, 3), torch.ones(2, 3).bool(), torch.tensor([0, 1])).labels_B.tolist()
        [0, 1]
    """

    ids_BL: Tensor
    mask_BL: Tensor
    labels_B: Tensor

    def to(self, device: torch.device) -> TextBatch:
        """The same on a device."""
        return TextBatch(self.ids_BL.to(device), self.mask_BL.to(device), self.labels_B.to(device))


@dataclass(frozen=True, kw_only=True)
class Chunks:
    """Pieces of documents, none longer than a window; their label is the place of their domain.

    Attributes:
        tokens: each domain's.
        end_id: of the tokenizer.
        places: int64 (N, 3), label, first token and number of tokens of each chunk.
    """

    tokens: tuple[TokenArray, ...]
    end_id: int
    places: Tensor

    def batch(self, rows_B: Tensor) -> TextBatch:
        """Those chunks, as wide as the longest of them."""
        from mixtura.train.data import arrays

        label_B, start_B, length_B = self.places[rows_B].unbind(1)
        width = int(length_B.max())
        mask_BL = torch.arange(width) < length_B[:, None]
        ids_BL = torch.full(mask_BL.shape, self.end_id)
        rows = zip(label_B.tolist(), start_B.tolist(), length_B.tolist(), strict=True)
        ids_BL[mask_BL] = torch.from_numpy(arrays.pieces(self.tokens, list(rows)))
        return TextBatch(ids_BL, mask_BL, label_B)


def cut(tokens: Mapping[str, TokenArray], *, end_id: int, seq_len: int, at_most: int = 0) -> Chunks:
    """Cut each domain's documents into chunks of `seq_len` tokens; the last of each document may be shorter.

    Args:
        tokens: by domain, the end id behind each document.
        end_id: which is it.
        seq_len: of the chunks.
        at_most: chunks of each domain, spread evenly over all of them; 0: all.

    Example:
        >>> import numpy as np
        >>> ids = np.array([5, 6, 7, 0, 8, 0], dtype="uint16")
        >>> cut({"a": ids}, end_id=0, seq_len=2).places.tolist()
        [[0, 0, 2], [0, 2, 1], [0, 4, 1]]
    """
    from mixtura.train.data import arrays

    places = []
    for label, ids in enumerate(tokens.values()):
        here = torch.from_numpy(arrays.chunk_places(ids, end_id=end_id, length=seq_len))
        if at_most and len(here) > at_most:
            here = here[torch.arange(at_most) * len(here) // at_most]
        places.append(torch.cat([torch.full((len(here), 1), label), here], dim=1))
    return Chunks(tokens=tuple(tokens.values()), end_id=end_id, places=torch.cat(places))


class ChunkStream(ShuffledStream[TextBatch]):
    """An endless shuffled stream of labelled chunks; see `ShuffledStream`.

    Args:
        chunks: the training part of a corpus.
        corpus: that it is of.
        batch_size: B of one rank.
        seed: of the order.
        rank: of this process.
        world_size: processes that share the stream.

    Raises:
        UserError: see `ShuffledStream`.
    """

    def __init__(
        self, chunks: Chunks, corpus: Corpus, *, batch_size: int, seed: int, rank: int = 0, world_size: int = 1
    ) -> None:
        self._chunks = chunks
        data: dict[str, int | str] = {"chunks": len(chunks.places), "corpus": corpus.folder.name}
        super().__init__(batch_size=batch_size, seed=seed, rank=rank, world_size=world_size, data=data)

    def epoch(self, generator: torch.Generator) -> Tensor:
        """All chunks, shuffled."""
        return torch.randperm(len(self._chunks.places), generator=generator)

    def gather(self, rows_B: Tensor, generator: torch.Generator) -> TextBatch:  # noqa: ARG002  # texts stay as they are
        """Those chunks."""
        return self._chunks.batch(rows_B)


def in_order(chunks: Chunks, *, batch_size: int) -> Iterator[TextBatch]:
    """All chunks, those of like length together, so that little is padding."""
    rows_N = chunks.places[:, 2].argsort(stable=True)
    for start in range(0, len(rows_N), batch_size):
        yield chunks.batch(rows_N[start : start + batch_size])
