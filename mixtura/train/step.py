"""One optimizer step, whole on one screen, and evaluation on held-out text."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from mixtura.losses.apply import collect_losses
from mixtura.observe.record import record
from mixtura.routers import update_biases
from mixtura.train.metrics import StepResult
from mixtura.train.optim import lr_share, set_lr
from mixtura.train.tasks.task import Evaluation, Stream, Task, autocast, device_of


def clip_here(model: nn.Module, max_norm: float) -> Tensor:
    """Scale the gradients of a model on one process down to a norm; returns the norm before.

    Example:
        >>> clip_here(nn.Linear(1, 1), 1.0).item()
        0.0
    """
    return torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Stream,
    *,
    task: Task,
    step: int,
    clip: Callable[[nn.Module, float], Tensor] = clip_here,
) -> StepResult:
    """Forward, backward, clip, update: one optimizer step over `config.accumulate` micro-batches.

    Args:
        model: in training mode.
        optimizer: of `build_optimizer`.
        batches: micro-batches without end.
        task: what the model is trained for; its configuration is that of the run.
        step: number of the step, from 0.
        clip: scales a model's gradients down to a norm and gives the norm before.
    """
    config, device = task.config, device_of(model)
    share = lr_share(step, steps=config.steps, warmup=config.optim.warmup, min_lr=config.optim.min_lr)
    set_lr(optimizer, share)
    total, weight, items = torch.zeros((), device=device), torch.zeros((), device=device), 0
    aux: dict[str, Tensor] = {}
    parts: dict[str, Tensor] = {}
    with record(model) as log:
        for _ in range(config.accumulate):
            with autocast(config, device), collect_losses(model) as losses:
                outcome = task.loss(model, next(batches))
            loss = outcome.loss + losses.total().to(device)
            (loss / config.accumulate).backward()
            items += outcome.items
            total += outcome.total
            weight += outcome.weight
            _add(aux, losses.means(), 1 / config.accumulate)
            _add(parts, outcome.parts, 1 / config.accumulate)
    max_norm = config.optim.grad_clip or float("inf")
    grad_norm = clip(model, max_norm)
    optimizer.step()
    optimizer.zero_grad()
    update_biases(model)
    return StepResult(
        total=total,
        weight=weight,
        items=items,
        lr=config.optim.lr * share,
        grad_norm=grad_norm,
        aux=aux,
        parts=parts,
        log=log,
    )


def _add(sums: dict[str, Tensor], values: Mapping[str, Tensor], share: float) -> None:
    for name, value in values.items():
        sums[name] = sums.get(name, 0) + value.detach() * share


@torch.no_grad()
def evaluate(model: nn.Module, task: Task) -> Evaluation:
    """A model's losses and scores on held-out data.

    The model is in evaluation mode meanwhile; random numbers are neither drawn nor disturbed.
    """
    was_training = model.training
    model.eval()
    evaluation = task.evaluate(model)
    model.train(was_training)
    return evaluation
