"""Translation: an encoder-decoder between any languages of aligned texts, with experts told apart by language."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from mixtura.errors import UserError
from mixtura.models.translator import Translator, TranslatorConfig
from mixtura.train.config import TrainConfig
from mixtura.train.data.pairs import PairBatch, Pairs, PairStream, Translations, in_order, tokenized
from mixtura.train.data.parallel import ParallelConfig, read_pairs
from mixtura.train.tasks.bleu import require_sacrebleu
from mixtura.train.tasks.task import Evaluation, Outcome, Say, Task, Units, autocast, device_of

if TYPE_CHECKING:
    from pathlib import Path

ADDED = 2  # to a text's tokens: the language and the end of a source, the end of a target


@dataclass(frozen=True, kw_only=True)
class TranslationConfig(TrainConfig):
    """A run of a translator.

    Raises:
        UserError: a value out of its range.

    Example:
        >>> TranslationConfig(steps=100).smoothing
        0.1
    """

    task: ClassVar[str] = "translation"
    units: ClassVar[Units] = Units(loss="nats/token", items="tokens", group="direction")

    model: TranslatorConfig = field(default_factory=TranslatorConfig)
    data: ParallelConfig = field(default_factory=ParallelConfig)
    smoothing: float = 0.1
    """Label smoothing: the share of each target that is spread evenly over all tokens; logged losses are without."""
    beam: int = 4
    """Hypotheses of the beam search that translates the held-out texts at the end; 1: greedy."""
    alpha: float = 0.6
    """Its length penalty; 0: none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.smoothing < 1:
            raise UserError(f"smoothing: expected at least 0 and less than 1, got {self.smoothing}")
        if self.beam < 1:
            raise UserError(f"beam: expected at least 1, got {self.beam}")
        if not 0 <= self.alpha <= 10:
            raise UserError(f"alpha: expected 0 to 10, got {self.alpha}")

    def check(self) -> None:
        """Refuse sizes that belong to the data, and to start without what scores the translations.

        Example:
            >>> TranslationConfig(model=TranslatorConfig(vocab_size=7)).check()
            Traceback (most recent call last):
            ...
            mixtura.errors.UserError: expected no --model.vocab-size, got 7; it comes from --data.vocab-size
        """
        require_sacrebleu()
        default = TranslatorConfig()
        for name, source in (("vocab_size", "vocab-size"), ("context", "max-tokens")):
            if (given := getattr(self.model, name)) != getattr(default, name):
                option = name.replace("_", "-")
                raise UserError(f"expected no --model.{option}, got {given}; it comes from --data.{source}")

    def build_model(self) -> Translator:
        """A translator with fresh weights.

        Example:
            >>> TranslationConfig().build_model().config.num_experts
            16
        """
        return Translator(self.model)

    def prepare(self, *, on_progress: Say | None = None) -> TranslationTask:
        """Read the texts, and fit the model's vocabulary and context to them."""
        say = on_progress or (lambda _: None)
        say("reading aligned texts")
        reading = read_pairs(self.data)
        say(f"learning {self.data.vocab_size} tokens of {len(reading.train):,} pairs")
        return TranslationTask.of(self, tokenized(reading, self.data))


@dataclass(frozen=True)
class TranslationTask(Task):
    """Pairs of sentences.

    Args:
        config: of the run.
        data: the pairs.
    """

    config: TranslationConfig
    data: Translations

    @classmethod
    def of(cls, config: TranslationConfig, data: Translations) -> TranslationTask:
        """The task whose model's vocabulary and context are those of the data."""
        sizes = replace(config.model, vocab_size=data.codec.vocab_size, context=config.data.max_tokens + ADDED)
        return cls(replace(config, model=sizes), data)

    @property
    def name(self) -> str:
        """Changes with any token."""
        return self.data.fingerprint

    def summary(self) -> Sequence[str]:
        """A line for each direction, and one on what was left out."""
        lines = []
        for direction in self.data.directions:
            train, val = (_sizes(pairs, pairs.of(direction)) for pairs in (self.data.train, self.data.val))
            lines.append(f"{direction:>12}  train {train}   held out {val}")
        return [*lines, f"{self.data.codec.vocab_size:,} tokens; pairs {self.data.report}"]

    def save(self, folder: Path) -> None:
        """Write the tokenizer, and the languages that can be asked for, one a line."""
        self.data.codec.tokenizer.save(folder / "tokenizer.json")
        (folder / "languages.txt").write_text("".join(f"{x}\n" for x in self.data.codec.languages), encoding="utf-8")

    def stream(self, *, rank: int = 0, world_size: int = 1) -> PairStream:
        """Training pairs."""
        data = self.config.data
        sizes = {"tokens": data.batch_tokens, "seed": data.seed, "rank": rank, "world_size": world_size}
        return PairStream(self.data.train, **sizes, fingerprint=self.data.fingerprint)

    def held_out(self, direction: str) -> Iterator[tuple[Tensor, PairBatch]]:
        """A direction's held-out pairs: their places, and what a model takes."""
        pairs = self.data.val
        for rows_B in in_order(pairs, pairs.of(direction), tokens=self.config.data.batch_tokens):
            yield rows_B, pairs.batch(rows_B)

    def loss(self, model: nn.Module, batch: PairBatch) -> Outcome:
        """Smoothed cross-entropy of the next target token; logged without smoothing."""
        batch = batch.to(device_of(model))
        means = self._means(model, batch, smoothing=self.config.smoothing)
        tokens = batch.mask_BL.sum()
        return Outcome(loss=means[0], total=means[1].detach() * tokens, weight=tokens.float(), items=int(tokens))

    def _means(self, model: nn.Module, batch: PairBatch, *, smoothing: float) -> Tensor:
        means: Tensor = model(
            batch.source_BS,
            batch.inputs_BL,
            source_mask_BS=batch.source_mask_BS,
            mask_BL=batch.mask_BL,
            targets_BL=batch.targets_BL,
            smoothing=smoothing,
        )
        return means

    def evaluate(self, model: nn.Module) -> Evaluation:
        """Nats per held-out target token by direction, the end of each text included."""
        device, losses = device_of(model), {}
        for direction in self.data.directions:
            nats, tokens = 0.0, 0
            for _, batch in self.held_out(direction):
                with autocast(self.config, device):
                    mean = self._means(model, batch.to(device), smoothing=0.0)[0]
                nats += float(mean) * int(batch.mask_BL.sum())
                tokens += int(batch.mask_BL.sum())
            losses[direction] = nats / tokens
        return Evaluation(losses=losses)

    def observe(self, model: nn.Module) -> dict[str, Any]:
        """Experts by direction and by target language, translations of held-out texts and their scores."""
        from mixtura.train.tasks.translations import observe  # late: chains of imports stay short

        assert isinstance(model, Translator)
        return observe(model, self)


def _sizes(pairs: Pairs, rows_N: Tensor) -> str:
    return f"{len(rows_N):7,} pairs, {int(pairs.lengths[rows_N, 1].sum()):9,} target tokens"
