"""Token files -> batches: an endless shuffled stream that stops and goes on anywhere, and held-out windows in order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mixtura.errors import UserError
from mixtura.train.data.tokens import Corpus

if TYPE_CHECKING:
    from mixtura.train.data.arrays import TokenArray


@dataclass(frozen=True)
class Batch:
    """Windows of tokens, the next token of each, and the domain (its place in `Corpus.domains`) each window is from."""

    inputs_BL: Tensor
    targets_BL: Tensor
    domain_B: Tensor


@dataclass(frozen=True)
class _Epoch:
    """The windows of one epoch in their order: the domain of each, and its first token there."""

    domain_N: Tensor
    start_N: Tensor


class TokenStream:
    """An endless stream of training batches over all domains, each in proportion to its size.

    Each epoch cuts every domain into windows of `seq_len` from a new random offset and passes each window once, in an
    order that depends on the seed and the epoch alone. A batch that reaches the end of an epoch takes its other windows
    from the next. With `world_size` ranks, one global batch of `world_size * batch_size` windows is shared out; the
    position counts global windows, so that a run may go on with another number of ranks or another batch size.

    Shapes: a `Batch` of inputs and targets (batch_size, seq_len) and domains (batch_size,), all int64.

    Raises:
        UserError: when no domain holds a whole window, or the state of another stream is loaded.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from mixtura.train.data import DataConfig, prepare
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "a.txt").write_text("\\n\\n".join(f"verse {i}" for i in range(200)))
        ...     config = DataConfig(path=f"{folder}/a.txt", seq_len=16, batch_size=4, cache=f"{folder}/cache")
        ...     stream = TokenStream(prepare(config), batch_size=4, seq_len=16, seed=0)
        ...     batch = next(stream)
        >>> batch.inputs_BL.shape, stream.state_dict()["position"]
        (torch.Size([4, 16]), 4)
    """

    def __init__(
        self, corpus: Corpus, *, batch_size: int, seq_len: int, seed: int, rank: int = 0, world_size: int = 1
    ) -> None:
        if not 0 <= rank < world_size:
            raise UserError(f"expected a rank from 0 to {world_size - 1}, got {rank}")
        if batch_size < 1 or seq_len < 1:
            raise UserError(f"expected batch_size and seq_len of at least 1, got {batch_size} and {seq_len}")
        self._corpus = corpus
        self._batch_size, self._seq_len, self._seed = batch_size, seq_len, seed
        self._rank, self._world_size = rank, world_size
        self._tokens = [corpus.train[domain] for domain in corpus.domains]
        if max(map(len, self._tokens)) <= seq_len:
            raise UserError(f"expected a domain of at least {seq_len + 1} training tokens, got none; lower seq_len")
        self._number = self._position = 0
        self._epoch = self._make_epoch(0)

    def __iter__(self) -> TokenStream:
        return self

    def __next__(self) -> Batch:
        """The next batch of this rank."""
        self._skip(self._rank * self._batch_size)
        windows = self._take(self._batch_size)
        self._skip((self._world_size - 1 - self._rank) * self._batch_size)
        domain_B, start_B = (torch.cat(parts) for parts in zip(*windows, strict=True))
        return _batch(self._tokens, domain_B, start_B, self._seq_len)

    def state_dict(self) -> dict[str, int | str]:
        """Where the stream stands, in global windows; the same on every rank."""
        return {
            "epoch": self._number,
            "position": self._position,
            "seed": self._seed,
            "seq_len": self._seq_len,
            "corpus": self._corpus.folder.name,
        }

    def load_state_dict(self, state: dict[str, int | str]) -> None:
        """Go on where another stream stood.

        Raises:
            UserError: when that stream had another seed, window length or text: its position means nothing here.
        """
        mine = self.state_dict()
        for name in ("seed", "seq_len", "corpus"):
            if state[name] != mine[name]:
                raise UserError(
                    f"expected the data of the saved run ({name} = {state[name]}), got {name} = {mine[name]}; "
                    "use the same text and settings, or start a new run"
                )
        self._number, self._position = int(state["epoch"]), int(state["position"])
        self._epoch = self._make_epoch(self._number)

    def _make_epoch(self, number: int) -> _Epoch:
        seed = blake2b(f"{self._seed}/{number}".encode(), digest_size=8).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(seed, "big") >> 1)
        # A window has one token more than its inputs; offsets stay small enough to leave at least one window.
        spare_D = torch.tensor([len(tokens) - 1 - self._seq_len for tokens in self._tokens])
        limit_D = spare_D.clamp(0, self._seq_len - 1) + 1
        offset_D = (torch.rand(len(self._tokens), generator=generator, dtype=torch.float64) * limit_D).long()
        windows_D = ((spare_D - offset_D).div(self._seq_len, rounding_mode="floor") + 1).clamp(min=0)
        order_N = torch.randperm(int(windows_D.sum()), generator=generator)
        domain_N = torch.arange(len(self._tokens)).repeat_interleave(windows_D)[order_N]
        first_D = windows_D.cumsum(0) - windows_D
        return _Epoch(domain_N, offset_D[domain_N] + (order_N - first_D[domain_N]) * self._seq_len)

    def _skip(self, windows: int) -> None:
        self._position += windows
        while self._position >= len(self._epoch.start_N):
            self._position -= len(self._epoch.start_N)
            self._number += 1
            self._epoch = self._make_epoch(self._number)

    def _take(self, windows: int) -> list[tuple[Tensor, Tensor]]:
        """The next windows' domains and starts, in one piece per epoch they come from."""
        pieces = []
        while windows:
            here = slice(self._position, self._position + windows)
            domain_B, start_B = self._epoch.domain_N[here], self._epoch.start_N[here]
            pieces.append((domain_B, start_B))
            windows -= len(start_B)
            self._skip(len(start_B))
        return pieces


def validation_batches(
    corpus: Corpus, domain: str, *, batch_size: int, seq_len: int, max_tokens: int
) -> Iterator[Batch]:
    """The windows of a domain's held-out tokens from their start, in order and without overlap; the same every time.

    At most `max_tokens` tokens are predicted, in whole windows and at least one; the last batch may be smaller.

    Raises:
        UserError: when there is no such domain, or it is shorter than one window.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from mixtura.train.data import DataConfig, prepare
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "a.txt").write_text("\\n\\n".join(f"verse {i}" for i in range(200)))
        ...     config = DataConfig(path=f"{folder}/a.txt", seq_len=16, batch_size=4, cache=f"{folder}/cache")
        ...     batches = validation_batches(prepare(config), "a", batch_size=4, seq_len=16, max_tokens=96)
        ...     [len(batch.inputs_BL) for batch in batches]
        [4, 2]
    """
    if domain not in corpus.domains:
        raise UserError(f"expected one of the domains {', '.join(corpus.domains)}, got {domain!r}")
    tokens = corpus.val[domain]
    windows = min((len(tokens) - 1) // seq_len, max(1, max_tokens // seq_len))
    if windows < 1:
        raise UserError(
            f"domain {domain!r}: expected at least {seq_len + 1} held-out tokens, got {len(tokens)}; lower seq_len"
        )
    held_out = [corpus.val[name] for name in corpus.domains]
    for first in range(0, windows, batch_size):
        start_B = torch.arange(first, min(first + batch_size, windows)) * seq_len
        yield _batch(held_out, torch.full_like(start_B, corpus.domains.index(domain)), start_B, seq_len)


def _batch(tokens: Sequence[TokenArray], domain_B: Tensor, start_B: Tensor, seq_len: int) -> Batch:
    from mixtura.train.data import arrays

    rows, starts = domain_B.tolist(), start_B.tolist()
    ids_BW = torch.from_numpy(arrays.windows(tokens, rows=rows, starts=starts, length=seq_len + 1))
    return Batch(ids_BW[:, :-1].contiguous(), ids_BW[:, 1:].contiguous(), domain_B)
