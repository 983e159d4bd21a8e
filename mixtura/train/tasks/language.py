"""Language modelling: a GPT on text, told apart by domain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from mixtura.errors import UserError
from mixtura.models.gpt import GPT, GPTConfig
from mixtura.train.config import TrainConfig
from mixtura.train.data.config import DataConfig
from mixtura.train.data.stream import Batch, TokenStream, validation_batches
from mixtura.train.data.tokens import Corpus, prepare
from mixtura.train.tasks.task import Evaluation, Outcome, Say, Task, Units, autocast, device_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class LanguageConfig(TrainConfig):
    """A run of a language model.

    Raises:
        UserError: a value out of its range.

    Example:
        >>> LanguageConfig(steps=100).optim.lr
        0.003
    """

    task: ClassVar[str] = "language"
    units: ClassVar[Units] = Units(loss="nats/byte", items="tokens", group="domain")

    model: GPTConfig = field(default_factory=GPTConfig)
    data: DataConfig = field(default_factory=DataConfig)
    recompute_interval: int = 0
    """Recompute the activations of every n-th block in the backward pass; 0: keep all."""
    prompts: tuple[str, ...] = ("def ", "import ", "The ", "#define ")
    """Prompts for the texts generated at the end."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.recompute_interval < 0:
            raise UserError(f"recompute_interval: expected at least 0, got {self.recompute_interval}")
        for prompt in self.prompts:
            if any("\ud800" <= letter <= "\udfff" for letter in prompt):
                raise UserError(f"prompts: expected Unicode text, got {prompt!r}, which holds half a character")

    def check(self) -> None:
        """Refuse sizes that belong to the data.

        Example:
            >>> LanguageConfig(model=GPTConfig(vocab_size=7)).check()
            Traceback (most recent call last):
            ...
            mixtura.errors.UserError: expected no --model.vocab-size, got 7; set --data.vocab-size instead
        """
        model, data, default = self.model, self.data, GPTConfig()
        if model.vocab_size not in (data.vocab_size, default.vocab_size):
            raise UserError(f"expected no --model.vocab-size, got {model.vocab_size}; set --data.vocab-size instead")
        if model.context not in (data.seq_len, default.context):
            raise UserError(f"expected no --model.context, got {model.context}; set --data.seq-len instead")

    def build_model(self) -> GPT:
        """A GPT with fresh weights.

        Example:
            >>> LanguageConfig().build_model().config.num_experts
            16
        """
        return GPT(self.model, recompute_interval=self.recompute_interval)

    def prepare(self, *, on_progress: Say | None = None) -> LanguageTask:
        """Read the text, and fit the model's vocabulary and context to it."""
        return LanguageTask.of(self, prepare(self.data, on_progress=on_progress))


@dataclass(frozen=True)
class LanguageTask(Task):
    """Text as tokens, by domain.

    Args:
        config: of the run.
        corpus: the text.
    """

    config: LanguageConfig
    corpus: Corpus

    @classmethod
    def of(cls, config: LanguageConfig, corpus: Corpus) -> LanguageTask:
        """The task whose model's vocabulary and context are those of the data.

        Raises:
            UserError: a domain has the name under which the mean over all domains is logged.
        """
        if "mean" in corpus.domains:
            raise UserError(
                "expected domains of any name but 'mean', which is the mean over all; rename that file or folder"
            )
        sizes = replace(config.model, vocab_size=corpus.tokenizer.vocab_size, context=config.data.seq_len)
        return cls(replace(config, model=sizes), corpus)

    @property
    def name(self) -> str:
        """The folder of the tokens, which is named after all that they depend on."""
        return self.corpus.folder.name

    @cached_property
    def byte_lengths(self) -> Tensor:
        """Bytes of text that each token stands for: float (V,)."""
        return torch.tensor(self.corpus.tokenizer.byte_lengths, dtype=torch.float32)

    def summary(self) -> Sequence[str]:
        """A line for each domain."""
        return [
            f"{row.domain:>12}  train {row.train_mb:7.2f} MB   held out {row.val_mb:6.2f} MB"
            for row in self.corpus.summary()
        ]

    def save(self, folder: Path) -> None:
        """Write the tokenizer, so that text can be generated without the corpus."""
        self.corpus.tokenizer.save(folder / "tokenizer.json")

    def stream(self, *, rank: int = 0, world_size: int = 1) -> TokenStream:
        """Windows of training text."""
        data = self.config.data
        sizes = {"batch_size": data.batch_size, "seq_len": data.seq_len, "seed": data.seed}
        return TokenStream(self.corpus, **sizes, rank=rank, world_size=world_size)

    def windows(self, domain: str) -> Iterator[Batch]:
        """A domain's held-out text, always the same."""
        data = self.config.data
        sizes = {"batch_size": data.batch_size, "seq_len": data.seq_len, "max_tokens": data.val_tokens}
        return validation_batches(self.corpus, domain, **sizes)

    def loss(self, model: nn.Module, batch: Batch) -> Outcome:
        """Cross-entropy of the next token, logged in nats per byte of text."""
        device, tokens = device_of(model), batch.targets_BL.numel()
        num_bytes = self.byte_lengths[batch.targets_BL].sum().to(device, non_blocking=True)
        batch = batch.to(device)
        loss = model(batch.inputs_BL, targets_BL=batch.targets_BL)
        return Outcome(loss=loss, total=loss.detach() * tokens, weight=num_bytes, items=tokens)

    def evaluate(self, model: nn.Module) -> Evaluation:
        """Nats per byte on every domain's held-out text."""
        device = device_of(model)
        losses = {}
        for domain in self.corpus.domains:
            nats, num_bytes = torch.zeros((), device=device), torch.zeros((), device=device)
            for batch in self.windows(domain):
                with autocast(self.config, device):
                    outcome = self.loss(model, batch)
                nats += outcome.total
                num_bytes += outcome.weight
            losses[domain] = (nats / num_bytes).item()
        return Evaluation(losses=losses)

    def observe(self, model: nn.Module) -> dict[str, Any]:
        """Experts by domain, coloured samples, generated text."""
        from mixtura.train.tasks.texts import observe  # late: chains of imports stay short

        assert isinstance(model, GPT)
        return observe(model, self)


def language_config(config: TrainConfig, *, run: str) -> LanguageConfig:
    """The configuration of a run, which must be one of a language model.

    Raises:
        UserError: it is of another kind.

    Example:
        >>> language_config(LanguageConfig(steps=3), run="runs/a").steps
        3
    """
    if not isinstance(config, LanguageConfig):
        raise UserError(f"expected a run of a language model, got {run!r}, whose task is {config.task}")
    return config
