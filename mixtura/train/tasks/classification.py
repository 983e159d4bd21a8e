"""Text classification: an encoder tells which domain a text is of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # torch's own customary name

from mixtura.errors import UserError
from mixtura.models.encoder import Encoder, EncoderConfig
from mixtura.observe.record import counts_by_group
from mixtura.train.config import TrainConfig
from mixtura.train.data.chunks import Chunks, ChunkStream, TextBatch, cut, in_order
from mixtura.train.data.config import DataConfig
from mixtura.train.data.tokens import Corpus, prepare
from mixtura.train.tasks.task import Evaluation, Outcome, Said, Say, Task, Units, autocast, device_of

if TYPE_CHECKING:
    from pathlib import Path

_CONFUSED = 10  # rows of the table of confused pairs


@dataclass(frozen=True, kw_only=True)
class ClassificationConfig(TrainConfig):
    """A run of a text classifier; its classes are the domains of the text.

    Raises:
        UserError: a value out of its range.

    Example:
        >>> ClassificationConfig(steps=100).data.embedded
        'package'
    """

    task: ClassVar[str] = "classification"
    units: ClassVar[Units] = Units(loss="nats/text", items="texts", group="class")

    model: EncoderConfig = field(default_factory=EncoderConfig)
    data: DataConfig = field(default_factory=lambda: DataConfig(embedded="package"))
    class_weight: Literal["none", "balanced"] = "none"
    """balanced: in training every class counts the same, however many texts it has."""
    recompute_interval: int = 0
    """Recompute the activations of every n-th block in the backward pass; 0: keep all."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.recompute_interval < 0:
            raise UserError(f"recompute_interval: expected at least 0, got {self.recompute_interval}")

    def check(self) -> None:
        """Refuse sizes that belong to the data.

        Example:
            >>> ClassificationConfig(model=EncoderConfig(num_classes=7)).check()
            Traceback (most recent call last):
            ...
            mixtura.errors.UserError: expected no --model.num-classes, got 7; it comes from the data
        """
        default = EncoderConfig()
        for name in ("vocab_size", "context", "num_classes"):
            if getattr(self.model, name) != getattr(default, name):
                option = name.replace("_", "-")
                raise UserError(
                    f"expected no --model.{option}, got {getattr(self.model, name)}; it comes from the data"
                )

    def build_model(self) -> Encoder:
        """An encoder with fresh weights.

        Example:
            >>> ClassificationConfig().build_model().config.num_experts
            16
        """
        return Encoder(self.model, recompute_interval=self.recompute_interval)

    def prepare(self, *, on_progress: Say | None = None) -> ClassificationTask:
        """Read the text, and fit the model's vocabulary, context and classes to it."""
        return ClassificationTask.of(self, prepare(self.data, on_progress=on_progress))

    def predict(self, model: nn.Module, data: str, *, folder: Path) -> Said:
        """Each text's class; see `mixtura.train.tasks.unlabelled.texts`."""
        from mixtura.train.tasks.unlabelled import texts  # late: chains of imports stay short

        return texts(model, self, data, folder=folder)


@dataclass(frozen=True)
class ClassificationTask(Task):
    """Labelled texts.

    Args:
        config: of the run.
        corpus: the texts by label.
    """

    config: ClassificationConfig
    corpus: Corpus

    @classmethod
    def of(cls, config: ClassificationConfig, corpus: Corpus) -> ClassificationTask:
        """The task whose model's sizes are those of the data.

        Raises:
            UserError: fewer than two classes, or one with the name under which the mean over all is logged.
        """
        if len(corpus.domains) < 2:
            raise UserError(
                f"expected texts of at least two classes, got only {corpus.domains[0]!r}; classes are folders, "
                "or the values of --data.domain-column"
            )
        if "mean" in corpus.domains:
            raise UserError("expected classes of any name but 'mean', which is the mean over all; rename it")
        model = replace(
            config.model,
            vocab_size=corpus.tokenizer.vocab_size,
            context=config.data.seq_len,
            num_classes=len(corpus.domains),
        )
        return cls(replace(config, model=model), corpus)

    @property
    def name(self) -> str:
        """The folder of the tokens, which is named after all that they depend on."""
        return self.corpus.folder.name

    @cached_property
    def train(self) -> Chunks:
        """What is learned from."""
        return self._cut(self.corpus.train)

    @cached_property
    def held_out(self) -> Chunks:
        """What is judged by: of each class as much as `--data.val-tokens` says."""
        data = self.config.data
        return self._cut(self.corpus.val, at_most=max(1, data.val_tokens // data.seq_len))

    def _cut(self, tokens: Any, *, at_most: int = 0) -> Chunks:
        end_id = self.corpus.tokenizer.end_id
        return cut(tokens, end_id=end_id, seq_len=self.config.data.seq_len, at_most=at_most)

    @cached_property
    def weight(self) -> Tensor | None:
        """Of each class in the loss of training: (classes,)."""
        if self.config.class_weight == "none":
            return None
        counts = self.train.places[:, 0].bincount(minlength=len(self.corpus.domains))
        return counts.sum() / (len(counts) * counts)

    def summary(self) -> Sequence[str]:
        """A line for each class."""
        counts = [
            chunks.places[:, 0].bincount(minlength=len(self.corpus.domains)) for chunks in (self.train, self.held_out)
        ]
        return [
            f"{row.domain:>16}  train {row.train_documents:6,} documents in {int(train):7,} texts"
            f"   held out {row.val_documents:5,} in {int(val):6,}"
            for row, train, val in zip(self.corpus.summary(), *counts, strict=True)
        ]

    def save(self, folder: Path) -> None:
        """Write the tokenizer, and the classes' names, one a line."""
        self.corpus.tokenizer.save(folder / "tokenizer.json")
        (folder / "classes.txt").write_text("".join(f"{name}\n" for name in self.corpus.domains), encoding="utf-8")

    def stream(self, *, rank: int = 0, world_size: int = 1) -> ChunkStream:
        """Training texts."""
        data = self.config.data
        sizes = {"batch_size": data.batch_size, "seed": data.seed, "rank": rank, "world_size": world_size}
        return ChunkStream(self.train, self.corpus, **sizes)

    def loss(self, model: nn.Module, batch: TextBatch) -> Outcome:
        """Cross-entropy of the class."""
        device = device_of(model)
        batch = batch.to(device)
        logits = model(batch.ids_BL, mask_BL=batch.mask_BL).float()
        weight = None if self.weight is None else self.weight.to(device)
        loss = F.cross_entropy(logits, batch.labels_B, weight=weight)
        hits = (logits.argmax(1) == batch.labels_B).float().mean()
        return Outcome.mean(loss, len(batch.labels_B), parts={"accuracy": hits})

    def predictions(self, model: nn.Module) -> tuple[Tensor, Tensor]:
        """Logits (N, classes) of the held-out texts, and their labels (N,)."""
        device, logits, labels = device_of(model), [], []
        for batch in in_order(self.held_out, batch_size=self.config.data.batch_size):
            with autocast(self.config, device):
                logits.append(model(batch.ids_BL.to(device), mask_BL=batch.mask_BL.to(device)).float().cpu())
            labels.append(batch.labels_B)
        return torch.cat(logits), torch.cat(labels)

    def evaluate(self, model: nn.Module) -> Evaluation:
        """Nats per held-out text by class; accuracy, and the mean of the classes' F1."""
        logits, labels_N = self.predictions(model)
        nats_N = F.cross_entropy(logits, labels_N, reduction="none").double()
        counts = labels_N.bincount(minlength=len(self.corpus.domains))
        nats = torch.zeros(len(counts), dtype=torch.float64).index_add_(0, labels_N, nats_N) / counts
        table = confusion(labels_N, logits.argmax(1), classes=len(counts))
        scores = {"macro F1": float(f1(table).mean()), "accuracy": float(table.diag().sum() / table.sum())}
        return Evaluation(losses=dict(zip(self.corpus.domains, nats.tolist(), strict=True)), scores=scores)

    def observe(self, model: nn.Module) -> dict[str, Any]:
        """Experts by class, coloured texts, and what is taken for what."""
        from mixtura.train.tasks.texts import coloured  # late: chains of imports stay short

        device, domains = device_of(model), self.corpus.domains
        rows = {name: (self.held_out.places[:, 0] == label).nonzero()[:, 0] for label, name in enumerate(domains)}

        def forwards(rows_N: Tensor) -> Iterator[object]:
            for rows_B in rows_N.split(self.config.data.batch_size):
                batch = self.held_out.batch(rows_B).to(device)
                yield model(batch.ids_BL, mask_BL=batch.mask_BL)

        seen = counts_by_group(model, {name: forwards(rows_N) for name, rows_N in rows.items()})
        tokenizer = self.corpus.tokenizer
        samples = [
            coloured(model, self.held_out.batch(rows_N[:1]).ids_BL.tolist(), tokenizer=tokenizer, domain=name)
            for name, rows_N in rows.items()
        ]
        logits, labels_N = self.predictions(model)
        return seen | {"samples": samples, "panels": _panels(domains, labels_N, logits.argmax(1))}


def confusion(labels_N: Tensor, predicted_N: Tensor, *, classes: int) -> Tensor:
    """How often a class (row) is taken for another (column): int64 (classes, classes).

    Example:
        >>> confusion(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1]), classes=2).tolist()
        [[1, 1], [0, 1]]
    """
    return (labels_N * classes + predicted_N).bincount(minlength=classes**2).view(classes, classes)


def f1(table: Tensor) -> Tensor:
    """F1 of each class of a confusion table: twice the hits over how often it is and how often it is said.

    Example:
        >>> f1(torch.tensor([[1, 1], [0, 1]])).tolist()
        [0.6666666666666666, 0.6666666666666666]
    """
    return 2 * table.diag().double() / (table.sum(0) + table.sum(1)).clamp(min=1)


def _panels(names: Sequence[str], labels_N: Tensor, predicted_N: Tensor) -> list[dict[str, Any]]:
    table = confusion(labels_N, predicted_N, classes=len(names))
    share = (table / table.sum(1, keepdim=True).clamp(min=1)).tolist()
    others = table - table.diag().diag()
    worst = others.flatten().topk(min(_CONFUSED, others.numel())).indices.tolist()
    pairs = [divmod(place, len(names)) for place in worst]
    rows = [
        [names[a], names[b], f"{int(table[a, b])} of {int(table[a].sum())}"] for a, b in pairs if int(table[a, b]) > 0
    ]
    heat = {"kind": "heatmap", "columns": list(names), "rows": list(names), "values": share, "axis": "taken for"}
    return [
        {
            **heat,
            "title": "What is taken for what",
            "note": "Shares of each class's held-out texts; good is a diagonal.",
        },
        {"kind": "table", "title": "Confused most", "columns": ["class", "taken for", "texts"], "rows": rows},
    ]
