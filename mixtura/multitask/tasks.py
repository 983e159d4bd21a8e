"""What is predicted: tasks, what a model says of them, and the loss of each over the rows that are labelled."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from mixtura.errors import UserError

Kind = Literal["binary", "regression", "multiclass"]


@dataclass(frozen=True, kw_only=True)
class Task:
    """One label to predict.

    Attributes:
        name: of the label, unique among a model's tasks.
        kind: "binary" (cross-entropy of one logit), "regression" (squared error), "multiclass" (cross-entropy).
        classes: number of classes of a "multiclass" task.
        weight: what the task's loss is multiplied with, see `mixtura.multitask.Fixed`.
        after: name of a binary task without which this binary one cannot happen (conversion after click): the model's
            probability is then that task's times this tower's, over all rows (ESMM: Ma et al. 2018, "Entire space
            multi-task model", equation 1). The label is that of both together.

    Raises:
        UserError: an empty name, an unknown kind, fewer than two classes, a weight that is not positive, `after` on a
            task that is not binary.

    Example:
        >>> Task(name="stars", kind="multiclass", classes=5).width, Task(name="click").width
        (5, 1)
    """

    name: str
    kind: Kind = "binary"
    classes: int = 2
    weight: float = 1.0
    after: str | None = None

    def __post_init__(self) -> None:
        if not self.name:
            raise UserError("expected a task with a name, got an empty one")
        if self.kind not in get_args(Kind):
            raise UserError(f"task {self.name!r}: expected a kind among {', '.join(get_args(Kind))}, got {self.kind!r}")
        if self.classes < 2 or (self.classes != 2 and self.kind != "multiclass"):
            raise UserError(f"task {self.name!r}: expected 2 classes, or more of a multiclass task, got {self.classes}")
        if not self.weight > 0:
            raise UserError(f"task {self.name!r}: expected a weight above 0, got {self.weight}")
        if self.after is not None and self.kind != "binary":
            raise UserError(f"task {self.name!r}: expected kind binary with after={self.after!r}, got {self.kind}")

    @property
    def width(self) -> int:
        """Numbers that a tower gives for one row."""
        return self.classes if self.kind == "multiclass" else 1


def check_tasks(tasks: Sequence[Task]) -> tuple[Task, ...]:
    """The tasks as a tuple, in which every name is there once, and every `after` names an earlier binary task.

    Raises:
        UserError: no task, a name twice, or an `after` that names no earlier binary task.

    Example:
        >>> [task.name for task in check_tasks([Task(name="click"), Task(name="buy", after="click")])]
        ['click', 'buy']
    """
    if not tasks:
        raise UserError("expected at least one task, got none")
    names = [task.name for task in tasks]
    if len(set(names)) < len(names):
        raise UserError(f"expected tasks with different names, got {', '.join(names)}")
    for number, task in enumerate(tasks):
        earlier = [t.name for t in tasks[:number] if t.kind == "binary"]
        if task.after is not None and task.after not in earlier:
            raise UserError(
                f"task {task.name!r}: expected after= to name an earlier binary task "
                f"({', '.join(earlier) or 'there is none'}), got {task.after!r}"
            )
    return tuple(tasks)


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a multi-task model says of a batch.

    Attributes:
        tasks: the tasks, in the model's order.
        scores: task -> (B,): the logit of a binary task, the value of a regression; (B, classes): logits.
        gates: for each level, task -> (B, E), each row's distribution over the experts that the task's gate can reach;
            `model.experts_of(task)` names them. Without gates (shared bottom) an empty mapping.

    Example:
        >>> told = Prediction(tasks=(Task(name="click"),), scores={"click": torch.zeros(2)}, gates=())
        >>> told.predictions()["click"].tolist()
        [0.5, 0.5]
    """

    tasks: tuple[Task, ...]
    scores: Mapping[str, Tensor]
    gates: tuple[Mapping[str, Tensor], ...]

    def predictions(self) -> dict[str, Tensor]:
        """task -> probability of a binary task (B,), value of a regression (B,), probabilities (B, classes)."""
        told = {}
        for task in self.tasks:
            score = self.scores[task.name]
            probability = score.softmax(-1) if task.kind == "multiclass" else score.sigmoid()
            told[task.name] = score if task.kind == "regression" else probability
        return told


def both(first: Tensor, second: Tensor) -> Tensor:
    """The logit of two independent events together, from the logit of each; exact also where one is sure.

    log p - log(1 - p) with p = sigmoid(a) sigmoid(b), 1 - p = (e^-a + e^-b + e^(-a-b)) p.

    Example:
        >>> both(torch.tensor(0.0), torch.tensor(0.0)).sigmoid().item()
        0.25
    """
    return -torch.logsumexp(torch.stack([-first, -second, -first - second]), 0)


def task_losses(
    prediction: Prediction, labels: Mapping[str, Tensor], *, weights: Mapping[str, Tensor] | Tensor | None = None
) -> dict[str, Tensor]:
    """Each task's mean loss over the rows that have its label: task -> scalar; 0 where no row has.

    Args:
        prediction: of a model.
        labels: task -> (B,): 0 or 1 (anything between too), a value, or a class number. NaN is a missing label, and of
            a task with classes every negative number too.
        weights: of rows: (B,) for all tasks, or task -> (B,); the mean is then sum(w loss) / sum(w).

    Raises:
        UserError: no labels of a task, or a shape other than (B,).

    Example:
        >>> said = Prediction(tasks=(Task(name="y", kind="regression"),), scores={"y": torch.zeros(3)}, gates=())
        >>> task_losses(said, {"y": torch.tensor([1.0, torch.nan, 3.0])})["y"].item()
        5.0
    """
    losses = {}
    for task in prediction.tasks:
        if task.name not in labels:
            raise UserError(
                f"expected labels of task {task.name!r}, got those of {', '.join(labels) or 'none'}; "
                "give a tensor of NaN where no row has one"
            )
        scores, label_B = prediction.scores[task.name], labels[task.name]
        if label_B.shape != scores.shape[:1]:
            raise UserError(
                f"task {task.name!r}: expected labels of shape ({scores.shape[0]},), got {tuple(label_B.shape)}"
            )
        weight_B = weights.get(task.name) if isinstance(weights, Mapping) else weights
        losses[task.name] = _mean_loss(task, scores, label_B, weight_B=weight_B)
    return losses


def _mean_loss(task: Task, scores: Tensor, label_B: Tensor, *, weight_B: Tensor | None) -> Tensor:
    has_label_B = ~label_B.isnan() if task.kind == "regression" else label_B >= 0  # NaN >= 0 is false
    label_B = label_B.where(has_label_B, 0)
    if task.kind == "multiclass":
        loss_B = functional.cross_entropy(scores, label_B.long(), reduction="none")
    elif task.kind == "binary":
        loss_B = functional.binary_cross_entropy_with_logits(scores, label_B.to(scores.dtype), reduction="none")
    else:
        loss_B = (scores - label_B.to(scores.dtype)).square()
    share_B = has_label_B.to(loss_B.dtype)
    if weight_B is not None:
        share_B = share_B * weight_B.to(loss_B.dtype)
    return (share_B * loss_B).sum() / share_B.sum().clamp(min=torch.finfo(loss_B.dtype).tiny)
