"""Pairs of sentences -> batches: tokens shared by all languages, pairs of like length together, padded a little."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

import torch
from torch import Tensor

from mixtura.errors import UserError
from mixtura.train.data.parallel import Pair, PairReading, ParallelConfig
from mixtura.train.data.shuffle import ShuffledStream
from mixtura.train.data.tokenizer import TextTokenizer


@dataclass(frozen=True, kw_only=True)
class Codec:
    """How texts become ids: byte pairs, and behind their ids one for each language that a model may be asked for.

    Attributes:
        tokenizer: of all languages.
        languages: those that are translated to.

    Example:
        >>> codec = Codec(tokenizer=TextTokenizer.train([], vocab_size=257), languages=("en", "es"))
        >>> codec.source("a", to="es"), codec.vocab_size
        ([258, 65, 0], 259)
    """

    tokenizer: TextTokenizer
    languages: tuple[str, ...]

    @property
    def vocab_size(self) -> int:
        """V, languages included."""
        return self.tokenizer.vocab_size + len(self.languages)

    def language_id(self, language: str) -> int:
        """The id that asks for a language.

        Raises:
            UserError: none of those.
        """
        if language not in self.languages:
            raise UserError(f"expected a language among {', '.join(self.languages)}, got {language!r}")
        return self.tokenizer.vocab_size + self.languages.index(language)

    def source(self, text: str, *, to: str) -> list[int]:
        """What the encoder reads: the language that is asked for, the text, the end.

        Source: Johnson et al. 2017, section 3.
        """
        return [self.language_id(to), *self.tokenizer.encode(text), self.tokenizer.end_id]


@dataclass(frozen=True, kw_only=True)
class PairBatch:
    """Sources and targets as models take them, the end id for padding.

    Shapes: source int64 (B, S) and its mask, bool, False for padding; inputs and targets, which follow them, int64
    (B, L), and their mask.

    Example:
        >>> parts = ("source_BS", "source_mask_BS", "inputs_BL", "targets_BL", "mask_BL")
        >>> PairBatch(**dict.fromkeys(parts, torch.zeros(2, 3))).to(torch.device("cpu")).mask_BL.shape
        torch.Size([2, 3])
    """

    source_BS: Tensor
    source_mask_BS: Tensor
    inputs_BL: Tensor
    targets_BL: Tensor
    mask_BL: Tensor

    def to(self, device: torch.device) -> PairBatch:
        """The same on a device."""
        return PairBatch(**{name: values.to(device) for name, values in vars(self).items()})


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Tokenized pairs.

    Attributes:
        texts: the pairs.
        tokens: int32, all their texts, the end id behind each: sources and targets in turn.
        starts: int64 (N, 2), where each pair's two texts begin.
        lengths: int64 (N, 2), tokens of each, without the end.
        language: int64 (N,), the id that asks for the target's language.
        end_id: of the tokenizer.
    """

    texts: tuple[Pair, ...]
    tokens: Tensor
    starts: Tensor
    lengths: Tensor
    language: Tensor
    end_id: int

    def __len__(self) -> int:
        return len(self.texts)

    def batch(self, rows_B: Tensor) -> PairBatch:
        """Those pairs, as wide as the longest of them."""
        source_BS, source_mask_BS = self._side(rows_B, 0)
        target_BL, mask_BL = self._side(rows_B, 1)
        source_BS = torch.cat([self.language[rows_B].unsqueeze(1), source_BS], dim=1)
        source_mask_BS = torch.cat([source_mask_BS[:, :1], source_mask_BS], dim=1)
        # The target begins behind an end, as in language models.
        inputs_BL = torch.cat([torch.full_like(target_BL[:, :1], self.end_id), target_BL[:, :-1]], dim=1)
        return PairBatch(
            source_BS=source_BS,
            source_mask_BS=source_mask_BS,
            inputs_BL=inputs_BL,
            targets_BL=target_BL,
            mask_BL=mask_BL,
        )

    def _side(self, rows_B: Tensor, side: int) -> tuple[Tensor, Tensor]:
        """One side's texts, each with its end, padded with ends: ids and mask, (B, L) each."""
        length_B1 = self.lengths[rows_B, side].unsqueeze(1) + 1
        places_L = torch.arange(int(length_B1.max()))
        mask_BL = places_L < length_B1
        at_BL = (self.starts[rows_B, side].unsqueeze(1) + places_L).clamp(max=len(self.tokens) - 1)
        return self.tokens[at_BL].long().masked_fill(~mask_BL, self.end_id), mask_BL

    def sizes(self) -> Tensor:
        """The longer side of each pair with what batches add to it: int64 (N,)."""
        return self.lengths.amax(1) + 2

    def of(self, direction: str) -> Tensor:
        """The places of a direction's pairs: int64."""
        return torch.tensor([place for place, pair in enumerate(self.texts) if pair.direction == direction])


@dataclass(frozen=True, kw_only=True)
class Translations:
    """What a run learns from and is judged by.

    Attributes:
        codec: of all texts.
        directions: from which languages to which, sorted.
        train: to learn from.
        val: held out.
        report: a line on what was left out.
        fingerprint: changes with any token or setting that it depends on.
    """

    codec: Codec
    directions: tuple[str, ...]
    train: Pairs
    val: Pairs
    report: str
    fingerprint: str = field(repr=False)


def tokenized(reading: PairReading, config: ParallelConfig) -> Translations:
    """Learn tokens from what is trained on, and tokenize all.

    Raises:
        UserError: a direction of which every pair is too long; an unreadable tokenizer.

    Example:
        >>> pairs = tuple(Pair("en", "es", f"one {n}", f"uno {n}") for n in range(9))
        >>> data = tokenized(PairReading(train=pairs[1:], val=pairs[:1]), ParallelConfig(vocab_size=257))
        >>> data.val.batch(torch.tensor([0])).inputs_BL.tolist() == [[0, *data.codec.tokenizer.encode("uno 0")]]
        True
    """
    if config.tokenizer:
        tokenizer = TextTokenizer.load(config.tokenizer)
    else:
        texts = dict.fromkeys(text for pair in reading.train for text in (pair.source, pair.target))
        tokenizer = TextTokenizer.train(texts, vocab_size=config.vocab_size)
    everything = (*reading.train, *reading.val)
    codec = Codec(tokenizer=tokenizer, languages=tuple(sorted({pair.target_language for pair in everything})))
    skipped = Counter(dict(reading.skipped))
    parts = {
        name: _encoded(pairs, codec, skipped, max_tokens=config.max_tokens, at_most=at_most)
        for name, pairs, at_most in (("train", reading.train, 0), ("val", reading.val, config.val_pairs))
    }
    directions = tuple(sorted({pair.direction for pair in everything}))
    for name, pairs in parts.items():
        if missing := {*directions} - {pair.direction for pair in pairs.texts}:
            raise UserError(
                f"{min(missing)}: expected pairs in the part {name!r} of at most data.max_tokens = {config.max_tokens} "
                "tokens a side, got none; raise it"
            )
    key = blake2b(repr((codec.languages, directions, config.batch_tokens)).encode(), digest_size=16)
    for pairs in parts.values():
        for values in (pairs.tokens, pairs.starts, pairs.language):
            key.update(values.numpy().tobytes())
    return Translations(
        codec=codec,
        directions=directions,
        **parts,
        report=PairReading(train=(), val=(), skipped=tuple(sorted(skipped.items()))).left_out(),
        fingerprint=key.hexdigest(),
    )


def _encoded(pairs: Sequence[Pair], codec: Codec, skipped: Counter[str], *, max_tokens: int, at_most: int) -> Pairs:
    """The pairs whose sides are short enough, of each direction at most so many; 0: all."""
    import numpy as np

    tokenizer = codec.tokenizer
    flat = tokenizer.encode_documents([text for pair in pairs for text in (pair.source, pair.target)])
    ends = np.flatnonzero(flat == tokenizer.end_id)
    starts = torch.from_numpy(np.concatenate([[0], ends[:-1] + 1])).view(-1, 2)
    lengths = torch.from_numpy(ends).view(-1, 2) - starts
    kept, counts = [], Counter[str]()
    for place, longest in enumerate(lengths.amax(1).tolist()):
        direction = pairs[place].direction
        if longest > max_tokens:
            skipped["too long"] += 1
        elif at_most and counts[direction] >= at_most:
            skipped["beyond data.val_pairs"] += 1
        else:
            counts[direction] += 1
            kept.append(place)
    return Pairs(
        texts=tuple(pairs[place] for place in kept),
        tokens=torch.from_numpy(flat.astype(np.int32)),
        starts=starts[kept],
        lengths=lengths[kept],
        language=torch.tensor([codec.language_id(pairs[place].target_language) for place in kept]),
        end_id=tokenizer.end_id,
    )


def cut(sizes_N: Tensor, *, tokens: int) -> list[tuple[int, int]]:
    """Batches of ascending sizes, as (first, behind the last): rows times the largest size are at most `tokens`.

    Example:
        >>> cut(torch.tensor([2, 2, 3, 5, 9]), tokens=9)
        [(0, 3), (3, 4), (4, 5)]
    """
    batches, first = [], 0
    for place, size in enumerate(sizes_N.tolist()):
        if (place + 1 - first) * size > tokens and place > first:
            batches.append((first, place))
            first = place
    return [*batches, (first, len(sizes_N))] if len(sizes_N) else []


class PairStream(ShuffledStream[PairBatch]):
    """An endless stream of training batches, each of pairs of like length; see `ShuffledStream`.

    What that calls a sample is a whole batch here: pairs are shuffled, sorted by length, cut into batches of at most
    `tokens` tokens a side, padding included, and the batches are shuffled.

    Args:
        pairs: the data.
        tokens: of a batch of one rank.
        seed: of the order.
        fingerprint: of the data.
        rank: of this process.
        world_size: processes that share the stream.

    Raises:
        UserError: see `ShuffledStream`.
    """

    def __init__(
        self, pairs: Pairs, *, tokens: int, seed: int, fingerprint: str, rank: int = 0, world_size: int = 1
    ) -> None:
        self._pairs, self._tokens, self._sizes = pairs, tokens, pairs.sizes()
        data: dict[str, int | str] = {"pairs": fingerprint}
        super().__init__(batch_size=1, seed=seed, rank=rank, world_size=world_size, data=data)

    def epoch(self, generator: torch.Generator) -> Tensor:
        """The pairs of each batch, batches in their order: int64 (batches, pairs of the largest), filled up with -1."""
        order_N = torch.randperm(len(self._pairs), generator=generator)
        order_N = order_N[self._sizes[order_N].argsort(stable=True)]
        places = cut(self._sizes[order_N], tokens=self._tokens)
        rows = torch.full((len(places), max(end - start for start, end in places)), -1)
        for row, (start, end) in zip(rows, places, strict=True):
            row[: end - start] = order_N[start:end]
        return rows[torch.randperm(len(rows), generator=generator)]

    def gather(self, rows_B: Tensor, generator: torch.Generator) -> PairBatch:  # noqa: ARG002  # texts stay as they are
        """That batch."""
        (row,) = rows_B
        return self._pairs.batch(row[row >= 0])


def in_order(pairs: Pairs, rows_N: Tensor, *, tokens: int) -> Iterator[Tensor]:
    """The places of some pairs in batches of at most so many tokens a side, those of like length together."""
    rows_N = rows_N[pairs.sizes()[rows_N].argsort(stable=True)]
    for start, end in cut(pairs.sizes()[rows_N], tokens=tokens):
        yield rows_N[start:end]
