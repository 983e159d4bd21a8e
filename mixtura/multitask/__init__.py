"""Multi-task models: several labels of the same rows, with experts that tasks share through gates of their own.

Example:
    >>> import torch
    >>> tasks = [Task(name="click"), Task(name="minutes", kind="regression")]
    >>> model = MMoE(TableEncoder([100, 20], numbers=3), tasks=tasks, num_experts=4)
    >>> said = model(torch.zeros(2, 2, dtype=torch.int64), torch.zeros(2, 3))
    >>> labels = {"click": torch.tensor([1.0, 0.0]), "minutes": torch.tensor([3.5, torch.nan])}
    >>> Fixed(tasks)(task_losses(said, labels)).backward()
"""

from mixtura.multitask.balance import BALANCES, Balance, Fixed, GradNorm, Uncertainty
from mixtura.multitask.encoder import TableEncoder
from mixtura.multitask.metrics import auc
from mixtura.multitask.mixing import ExpertStack
from mixtura.multitask.models import PLE, MMoE, MultiTask, OMoE, SharedBottom
from mixtura.multitask.tasks import Prediction, Task, task_losses
from mixtura.multitask.transfer import AITM

__all__ = [
    "AITM",
    "BALANCES",
    "MODELS",
    "PLE",
    "Balance",
    "ExpertStack",
    "Fixed",
    "GradNorm",
    "MMoE",
    "MultiTask",
    "OMoE",
    "Prediction",
    "SharedBottom",
    "TableEncoder",
    "Task",
    "Uncertainty",
    "auc",
    "task_losses",
]

MODELS: dict[str, type[MultiTask]] = {
    "shared_bottom": SharedBottom,
    "omoe": OMoE,
    "mmoe": MMoE,
    "ple": PLE,
    "aitm": AITM,
}
