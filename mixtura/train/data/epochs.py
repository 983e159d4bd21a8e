"""An endless shuffled stream over whatever an epoch is made of, which stops and goes on anywhere."""

from __future__ import annotations

from abc import ABC, abstractmethod
from hashlib import blake2b
from typing import ClassVar, Generic, Self, TypeVar

import torch
from torch import Tensor

from mixtura.errors import UserError

Item = TypeVar("Item")


class EpochStream(ABC, Generic[Item]):
    """An endless stream of training batches; a subclass says what an epoch holds and makes batches of it.

    Each epoch passes everything once, in an order that depends on the seed and the epoch alone. A batch that reaches
    the end of an epoch takes what it lacks from the next. With `world_size` ranks, one global batch of
    `world_size * batch_size` is shared out; the position counts globally, so that a run may go on with another number
    of ranks or another batch size.

    Args:
        batch_size: what one rank gets at a time.
        seed: of the order.
        rank: of this process.
        world_size: processes that share the stream.

    Raises:
        UserError: a rank outside the world, a batch size below 1; the state of another stream is loaded.

    Example:
        >>> class Numbers(EpochStream[list[int]]):
        ...     def identity(self):
        ...         return {"upto": 3}
        ...     def order(self, generator):
        ...         return torch.randperm(3, generator=generator).unsqueeze(1)
        ...     def batch(self, rows, generator):
        ...         return rows[:, 0].tolist()
        >>> stream = Numbers(batch_size=6, seed=0)
        >>> sorted(next(stream)), stream.state_dict()
        ([0, 0, 1, 1, 2, 2], {'epoch': 2, 'position': 0, 'seed': 0, 'upto': 3})
    """

    what: ClassVar[str] = "data"  # in messages

    def __init__(self, *, batch_size: int, seed: int, rank: int = 0, world_size: int = 1) -> None:
        if not 0 <= rank < world_size:
            raise UserError(f"expected a rank from 0 to {world_size - 1}, got {rank}")
        if batch_size < 1:
            raise UserError(f"expected a batch_size of at least 1, got {batch_size}")
        self._batch_size, self._seed, self._rank, self._world_size = batch_size, seed, rank, world_size
        self._number = self._position = 0
        self._order = self.order(self._generator(f"{seed}/0"))

    @abstractmethod
    def identity(self) -> dict[str, int | str]:
        """What must be the same for a saved position to mean the same here."""

    @abstractmethod
    def order(self, generator: torch.Generator) -> Tensor:
        """What an epoch holds, in a new order: int64 (N, columns)."""

    @abstractmethod
    def batch(self, rows: Tensor, generator: torch.Generator) -> Item:
        """A batch of these rows of `order`; the generator depends on the seed and the place in the stream alone."""

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Item:
        """The next batch of this rank."""
        generator = self._generator(f"{self._seed}/{self._number}/{self._position}/{self._rank}")
        self._skip(self._rank * self._batch_size)
        rows = self._take(self._batch_size)
        self._skip((self._world_size - 1 - self._rank) * self._batch_size)
        return self.batch(rows, generator)

    def state_dict(self) -> dict[str, int | str]:
        """Where the stream stands, counted over all ranks; the same on every rank."""
        return {"epoch": self._number, "position": self._position, "seed": self._seed, **self.identity()}

    def load_state_dict(self, state: dict[str, int | str]) -> None:
        """Go on where another stream stood.

        Raises:
            UserError: when that stream had another seed or other data: its position means nothing here.
        """
        for name, value in {"seed": self._seed, **self.identity()}.items():
            if state[name] != value:
                raise UserError(
                    f"expected the data of the saved run ({name} = {state[name]}), got {name} = {value}; "
                    f"use the same {self.what} and settings, or start a new run"
                )
        self._number, self._position = int(state["epoch"]), int(state["position"])
        self._order = self.order(self._generator(f"{self._seed}/{self._number}"))

    @staticmethod
    def _generator(key: str) -> torch.Generator:
        seed = blake2b(key.encode(), digest_size=8).digest()
        return torch.Generator().manual_seed(int.from_bytes(seed, "big") >> 1)

    def _skip(self, rows: int) -> None:
        self._position += rows
        while self._position >= len(self._order):
            self._position -= len(self._order)
            self._number += 1
            self._order = self.order(self._generator(f"{self._seed}/{self._number}"))

    def _take(self, wanted: int) -> Tensor:
        """The next rows, in one piece per epoch they come from."""
        pieces = []
        while wanted:
            rows = self._order[self._position : self._position + wanted]
            pieces.append(rows)
            wanted -= len(rows)
            self._skip(len(rows))
        return torch.cat(pieces)
