"""An endless shuffled stream of samples that stops and goes on anywhere, shared out over ranks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from hashlib import blake2b
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from mixtura.errors import UserError

Batch = TypeVar("Batch")


def generator_of(seed: int, place: str) -> torch.Generator:
    """A generator of its own for each place in the data, whatever was drawn elsewhere.

    Example:
        >>> torch.equal(*(torch.rand(3, generator=generator_of(0, "epoch 1")) for _ in range(2)))
        True
    """
    digest = blake2b(f"{seed}/{place}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


class ShuffledStream(ABC, Generic[Batch]):
    """Batches of samples, epoch after epoch, each in an order that depends on the seed and the epoch alone.

    A batch that reaches the end of an epoch takes its other samples from the next. With `world_size` ranks, one global
    batch of `world_size * batch_size` samples is shared out; the position counts global samples, so that a run may go
    on with another number of ranks or another batch size.

    Args:
        batch_size: samples in a batch of one rank.
        seed: of the order.
        rank: whose share this is.
        world_size: number of ranks.
        data: what the position depends on besides the seed, by name: another stream's state is refused where it
            differs.

    Raises:
        UserError: values out of their range, or the state of another stream is loaded.
    """

    def __init__(
        self, *, batch_size: int, seed: int, rank: int = 0, world_size: int = 1, data: dict[str, int | str]
    ) -> None:
        if not 0 <= rank < world_size:
            raise UserError(f"expected a rank from 0 to {world_size - 1}, got {rank}")
        if batch_size < 1:
            raise UserError(f"expected batch_size of at least 1, got {batch_size}")
        self._batch_size, self._rank, self._world_size = batch_size, rank, world_size
        self._data = {"seed": seed, **data}
        self._seed = seed
        self._number = self._position = 0
        self._epoch = self._order(0)

    @abstractmethod
    def epoch(self, generator: torch.Generator) -> Tensor:
        """The samples of one epoch in their order: (N, ...), at least one row, what `gather` needs to know of each."""

    @abstractmethod
    def gather(self, rows_B: Tensor, generator: torch.Generator) -> Batch:
        """The batch of some rows of an epoch; what is drawn from the generator depends on the batch's place alone."""

    def __iter__(self) -> ShuffledStream[Batch]:
        return self

    def __next__(self) -> Batch:
        """The next batch of this rank."""
        self._skip(self._rank * self._batch_size)
        place = f"{self._number}/{self._position}"
        rows_B = self._take(self._batch_size)
        self._skip((self._world_size - 1 - self._rank) * self._batch_size)
        return self.gather(rows_B, self._generator(place))

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands, in global samples; the same on every rank."""
        return {"epoch": self._number, "position": self._position, **self._data}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where another stream stood.

        Raises:
            UserError: when that stream had another seed or other data: its position means nothing here.
        """
        for name, mine in self._data.items():
            if state[name] != mine:
                raise UserError(
                    f"expected the data of the saved run ({name} = {state[name]}), got {name} = {mine}; "
                    "use the same data and settings, or start a new run"
                )
        self._number, self._position = int(state["epoch"]), int(state["position"])
        self._epoch = self._order(self._number)

    def _order(self, number: int) -> Tensor:
        return self.epoch(self._generator(str(number)))

    def _generator(self, place: str) -> torch.Generator:
        return generator_of(self._seed, place)

    def _skip(self, samples: int) -> None:
        self._position += samples
        while self._position >= len(self._epoch):
            self._position -= len(self._epoch)
            self._number += 1
            self._epoch = self._order(self._number)

    def _take(self, samples: int) -> Tensor:
        pieces = []
        while samples:
            pieces.append(self._epoch[self._position : self._position + samples])
            samples -= len(pieces[-1])
            self._skip(len(pieces[-1]))
        return torch.cat(pieces)
