"""Token files -> batches: an endless shuffled stream that stops and goes on anywhere, and held-out windows in order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mixtura.errors import UserError
from mixtura.train.data.shuffle import ShuffledStream
from mixtura.train.data.tokens import Corpus

if TYPE_CHECKING:
    from mixtura.train.data.arrays import TokenArray


@dataclass(frozen=True)
class Batch:
    """Windows of tokens, the next token of each, and the domain (its place in `Corpus.domains`) each window is from."""

    inputs_BL: Tensor
    targets_BL: Tensor
    domain_B: Tensor

    def to(self, device: torch.device) -> Batch:
        """The same on a device."""
        return Batch(self.inputs_BL.to(device), self.targets_BL.to(device), self.domain_B.to(device))


class TokenStream(ShuffledStream[Batch]):
    """An endless stream of training batches over all domains, each in proportion to its size.

    Each epoch cuts every domain into windows of `seq_len` from a new random offset and passes each window once.
    Shuffling, ranks and going on are those of `ShuffledStream`.

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
        if seq_len < 1:
            raise UserError(f"expected seq_len of at least 1, got {seq_len}")
        self._seq_len = seq_len
        self._tokens = [corpus.train[domain] for domain in corpus.domains]
        if max(map(len, self._tokens)) <= seq_len:
            raise UserError(f"expected a domain of at least {seq_len + 1} training tokens, got none; lower seq_len")
        super().__init__(
            batch_size=batch_size,
            seed=seed,
            rank=rank,
            world_size=world_size,
            data={"seq_len": seq_len, "corpus": corpus.folder.name},
        )

    def epoch(self, generator: torch.Generator) -> Tensor:
        """Windows in their order: the domain of each, and its first token there."""
        # A window has one token more than its inputs; offsets stay small enough to leave at least one window.
        spare_D = torch.tensor([len(tokens) - 1 - self._seq_len for tokens in self._tokens])
        limit_D = spare_D.clamp(0, self._seq_len - 1) + 1
        offset_D = (torch.rand(len(self._tokens), generator=generator, dtype=torch.float64) * limit_D).long()
        windows_D = ((spare_D - offset_D).div(self._seq_len, rounding_mode="floor") + 1).clamp(min=0)
        order_N = torch.randperm(int(windows_D.sum()), generator=generator)
        domain_N = torch.arange(len(self._tokens)).repeat_interleave(windows_D)[order_N]
        first_D = windows_D.cumsum(0) - windows_D
        return torch.stack([domain_N, offset_D[domain_N] + (order_N - first_D[domain_N]) * self._seq_len], dim=1)

    def gather(self, rows_B: Tensor, generator: torch.Generator) -> Batch:  # noqa: ARG002  # text is not augmented
        """The windows' tokens."""
        return _batch(self._tokens, rows_B[:, 0], rows_B[:, 1], self._seq_len)


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
