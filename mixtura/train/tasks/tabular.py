"""Several labels of one table: a multi-task model on categorical and numeric columns."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from mixtura.errors import UserError
from mixtura.multitask import Prediction, Task, auc, task_losses
from mixtura.train.config import TrainConfig
from mixtura.train.data.schema import Schema, Table, encode, learn
from mixtura.train.data.shuffle import ShuffledStream
from mixtura.train.data.table import Columns, held_out, read_sheet
from mixtura.train.tasks import task as tasks
from mixtura.train.tasks.network import NetworkConfig, TabularModel
from mixtura.train.tasks.task import Evaluation, Outcome, Said, Say, Units, autocast, device_of

if TYPE_CHECKING:
    from torch import Generator

EVALUATED = 8192  # rows at a time


@dataclass(frozen=True, kw_only=True)
class TableConfig(Columns):
    """The table, what its columns are for, and how rows become batches.

    Raises:
        UserError: a value out of its range.

    Example:
        >>> TableConfig(path="orders.csv", labels=("click",)).batch_size
        1024
    """

    path: str = ""
    """A .csv, .tsv or .parquet file whose columns have names. Empty: the Census-Income data."""
    val_path: str = ""
    """Another such file to validate on. Empty: rows of the first one are held out."""
    batch_size: int = 1024
    """Rows in one micro-step on one device."""
    val_fraction: float = 0.1
    """Share of rows, or of groups, that are held out."""
    cache: str = ".cache/mixtura"
    """Folder in which the Census-Income data are looked for."""
    seed: int = 0
    """Chooses the held-out rows and the order of training rows."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch_size < 1 or self.seed < 0:
            raise UserError(
                f"data: expected batch_size of at least 1, seed of at least 0, got {self.batch_size} and {self.seed}"
            )
        if not 0 < self.val_fraction < 1:
            raise UserError(f"data.val_fraction: expected more than 0 and less than 1, got {self.val_fraction}")
        if self.path and not self.labels:
            raise UserError("data.labels: expected the columns to predict, got none; write --data.labels NAME ...")
        if self.labels and not self.path:
            names = ", ".join(self.kinds())
            raise UserError(f"data.path: expected the table of {names}, got none; set --data.path")
        if "mean" in self.kinds():
            raise UserError("expected labels of any name but 'mean', which is the mean over all; rename that column")


@dataclass(frozen=True, kw_only=True)
class TabularConfig(TrainConfig):
    """A run on a table.

    Example:
        >>> TabularConfig(steps=10).task
        'tabular'
    """

    task: ClassVar[str] = "tabular"
    units: ClassVar[Units] = Units(loss="loss", items="rows", group="label")

    model: NetworkConfig = field(default_factory=NetworkConfig)
    data: TableConfig = field(default_factory=TableConfig)

    def check(self) -> None:
        """Refuse what belongs to the table."""
        if given := [name for name in NetworkConfig.OF_TABLE if getattr(self.model, name)]:
            raise UserError(f"expected no --model.{given[0]}, which the table decides; set --data.labels instead")

    def build_model(self) -> TabularModel:
        """The model with fresh weights."""
        return self.model.build()

    def prepare(self, *, on_progress: Say | None = None) -> TabularTask:
        """Read the table, learn from its training rows, and fit the model to it."""
        data = self.data
        if not data.path:
            data = _census(data)
        if on_progress is not None:
            on_progress(f"reading {data.path}")
        sheet = read_sheet(data.path, missing=data.missing)
        if data.val_path:
            is_held, other = np.zeros(sheet.rows, dtype=bool), read_sheet(data.val_path, missing=data.missing)
        else:
            is_held = held_out(sheet, fraction=data.val_fraction, group=data.group, seed=data.seed)
            other = sheet
        schema = learn(sheet, data, ~is_held)
        train, val = encode(sheet, schema, ~is_held), encode(other, schema, is_held if other is sheet else None)
        _check_labelled(val, other.path)
        model = replace(
            self.model,
            cardinalities=tuple(c.size for c in schema.categories),
            numbers=schema.numbers_width,
            names=tuple(label.name for label in schema.labels),
            kinds=tuple(label.kind for label in schema.labels),
            classes=tuple(len(label.classes) if label.kind == "multiclass" else 2 for label in schema.labels),
        )
        train, val = (_settled(table, model.conditions()) for table in (train, val))
        return TabularTask(
            config=replace(self, model=model),
            schema=schema,
            train=Rows.of(train),
            val=Rows.of(val),
            notes=(train.notes, val.notes),
        )

    def predict(self, model: nn.Module, data: str, *, folder: Path) -> Said:
        """Every label's column for the rows of another table, which needs no labels."""
        schema = _read_schema(folder / "table.json")
        table = encode(read_sheet(data, missing=self.data.missing), replace(schema, labels=(), weight=""))
        return Said(columns=_columns(said_of(model, Rows.of(table), self), schema), notes=table.notes)


def _census(data: TableConfig) -> TableConfig:
    from mixtura.train.data.census import CODES, LEFT_OUT, census

    train, test = census(Path(data.cache, "census"))
    return replace(
        data,
        path=str(train),
        val_path=str(test),
        labels=("income:binary", "college:binary"),
        categorical=CODES,
        ignore=LEFT_OUT,
    )


def _read_schema(path: Path) -> Schema:
    try:
        return Schema.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"expected what a run learned of its table in {path}, got none ({error}); train anew"
        ) from error


def _settled(table: Table, conditions: Mapping[str, str]) -> Table:
    """Rows without an earlier event are rows without the later one; both facts that matter are counted."""
    labels, notes = dict(table.labels), list(table.notes)
    for later, earlier in conditions.items():
        is_without, values = labels[earlier] == 0, labels[later]
        is_implied = is_without & np.isnan(values)
        labels[later] = np.where(is_implied, np.float32(0), values)
        notes.append(f"{later}: {is_implied.sum():,} rows without a label are no {later}, since they are no {earlier}")
        if strange := int((is_without & (values == 1)).sum()):
            notes.append(f"{later} without {earlier}: {strange:,} rows, which this model holds for impossible")
    return replace(table, labels=labels, notes=tuple(notes))


def _check_labelled(table: Table, path: str) -> None:
    for name, values in table.labels.items():
        if np.isnan(values).all():
            raise UserError(f"{path}, column {name!r}: expected labels in the validation rows, got none")


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Rows of a table, a batch or all of them.

    Shapes:
        categories_BC: int64. numbers_BM: float32. labels: name -> float32 (B,), NaN where missing. weight_B: float32.
    """

    categories_BC: Tensor
    numbers_BM: Tensor
    labels: Mapping[str, Tensor]
    weight_B: Tensor

    @classmethod
    def of(cls, table: Table) -> Rows:
        """Encoded rows as tensors."""
        return cls(
            categories_BC=torch.from_numpy(table.categories_NC),
            numbers_BM=torch.from_numpy(table.numbers_NM),
            labels={name: torch.from_numpy(values) for name, values in table.labels.items()},
            weight_B=torch.from_numpy(table.weight_N),
        )

    def __len__(self) -> int:
        return len(self.weight_B)

    def change(self, change: Callable[[Tensor], Tensor]) -> Rows:
        """The same with every tensor changed."""
        return Rows(
            categories_BC=change(self.categories_BC),
            numbers_BM=change(self.numbers_BM),
            labels={name: change(values) for name, values in self.labels.items()},
            weight_B=change(self.weight_B),
        )

    def take(self, rows: Tensor | slice) -> Rows:
        """Some of them."""
        return self.change(lambda values: values[rows])

    def to(self, device: torch.device) -> Rows:
        """The same on a device."""
        return self.change(lambda values: values.to(device))


class RowStream(ShuffledStream[Rows]):
    """Training rows, each once in an epoch."""

    def __init__(
        self, rows: Rows, *, name: str, batch_size: int, seed: int, rank: int = 0, world_size: int = 1
    ) -> None:
        self._rows = rows
        super().__init__(batch_size=batch_size, seed=seed, rank=rank, world_size=world_size, data={"table": name})

    def epoch(self, generator: Generator) -> Tensor:
        """Numbers of rows in their order."""
        return torch.randperm(len(self._rows), generator=generator)

    def gather(self, rows_B: Tensor, generator: Generator) -> Rows:  # noqa: ARG002  # rows are not augmented
        """The rows."""
        return self._rows.take(rows_B)


@dataclass(frozen=True, kw_only=True)
class TabularTask(tasks.Task):
    """A table's encoded rows.

    Args:
        config: of the run.
        schema: what its training rows taught.
        train: training rows.
        val: held-out rows.
        notes: what was counted while these two were encoded.
    """

    config: TabularConfig
    schema: Schema
    train: Rows
    val: Rows
    notes: tuple[Sequence[str], Sequence[str]]

    @cached_property
    def name(self) -> str:
        """A hash of the schema and of the training rows; every checkpoint asks for it."""
        digest = blake2b(json.dumps(self.schema.to_dict()).encode(), digest_size=8)
        for values in (self.train.categories_BC, self.train.numbers_BM, *self.train.labels.values()):
            digest.update(values.numpy().tobytes())
        return digest.hexdigest()

    def summary(self) -> Sequence[str]:
        """How many rows and columns, and every count of the encoding."""
        schema = self.schema
        columns = f"{len(schema.categories)} categorical and {len(schema.numbers)} numeric columns"
        parts = zip(("training", "held out"), (self.train, self.val), self.notes, strict=True)
        lines = [
            [f"{name}: {len(rows):,} rows, {columns}", *(f"  {note}" for note in notes)] for name, rows, notes in parts
        ]
        return [line for part in lines for line in part]

    def save(self, folder: Path) -> None:
        """Write what training rows have taught, so that other rows can be encoded without the table."""
        (folder / "table.json").write_text(json.dumps(self.schema.to_dict(), indent=1), encoding="utf-8")

    def stream(self, *, rank: int = 0, world_size: int = 1) -> RowStream:
        """Shuffled training rows."""
        data = self.config.data
        sizes = {"batch_size": data.batch_size, "seed": data.seed, "rank": rank, "world_size": world_size}
        return RowStream(self.train, name=self.name, **sizes)

    def loss(self, model: nn.Module, batch: Rows) -> Outcome:
        """The balanced sum of the tasks' losses; logged is their plain sum."""
        assert isinstance(model, TabularModel)
        batch = batch.to(device_of(model))
        said = model(batch.categories_BC, batch.numbers_BM)
        losses = task_losses(said, batch.labels, weights=batch.weight_B)
        plain = torch.stack(list(losses.values())).sum().detach()
        outcome = Outcome.mean(plain, len(batch), parts={name: loss.detach() for name, loss in losses.items()})
        return replace(outcome, loss=model.total(losses))

    def predict(self, model: nn.Module) -> Prediction:
        """What a model in evaluation mode says of the held-out rows, on the CPU."""
        return said_of(model, self.val, self.config)

    def evaluate(self, model: nn.Module) -> Evaluation:
        """Each label's loss, and AUC, accuracy or R2."""
        said = self.predict(model)
        losses = task_losses(said, self.val.labels, weights=self.val.weight_B)
        scores = dict(_score(task, said.scores[task.name], self.val.labels[task.name]) for task in said.tasks)
        return Evaluation(losses={name: loss.item() for name, loss in losses.items()}, scores=scores)

    def observe(self, model: nn.Module) -> dict[str, Any]:
        """Mean weight of each expert in each label's gate, by class; the balance; every count of the encoding."""
        assert isinstance(model, TabularModel)
        from mixtura.train.tasks.gates import panels  # late: chains of imports stay short

        return {"panels": panels(model, self)}


def said_of(model: nn.Module, rows: Rows, config: TabularConfig) -> Prediction:
    """What a model in evaluation mode says of rows, a part of them at a time, on the CPU."""
    device, said = device_of(model), []
    for start in range(0, len(rows), EVALUATED):
        batch = rows.take(slice(start, start + EVALUATED)).to(device)
        with torch.no_grad(), autocast(config, device):
            said.append(model(batch.categories_BC, batch.numbers_BM))
    first = said[0]
    scores = {name: torch.cat([one.scores[name].float().cpu() for one in said]) for name in first.scores}
    gates = tuple(
        {task: torch.cat([one.gates[level][task].float().cpu() for one in said]) for task in told}
        for level, told in enumerate(first.gates)
    )
    return Prediction(tasks=first.tasks, scores=scores, gates=gates)


def _columns(said: Prediction, schema: Schema) -> dict[str, list[float]]:
    """Label=class -> its probability, of a binary label that of its second class; regression -> value."""
    columns = {}
    for label in schema.labels:
        told = said.predictions()[label.name]
        if label.kind == "regression":
            columns[label.name] = (label.mean + label.deviation * told).tolist()
        elif label.kind == "binary":
            columns[f"{label.name}={label.classes[1]}"] = told.tolist()
        else:
            for name, probability in zip(label.classes, told.unbind(1), strict=True):
                columns[f"{label.name}={name}"] = probability.tolist()
    return columns


def _score(task: Task, score: Tensor, label: Tensor) -> tuple[str, float]:
    known = ~label.isnan()
    if task.kind == "binary":
        return f"AUC {task.name}", auc(score, label)
    if task.kind == "multiclass":
        return f"accuracy {task.name}", float((score[known].argmax(-1) == label[known]).float().mean())
    rest, spread = (score - label)[known].square().mean(), label[known].var(correction=0)
    return f"R2 {task.name}", float(1 - rest / spread) if spread > 0 else math.nan
