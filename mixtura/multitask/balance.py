"""How the tasks' losses become one: fixed weights, by learned uncertainty, or by the size of their gradients.

Each is a module, `losses, shared -> total`; its parameters belong in the optimizer beside the model's.
"""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from mixtura.errors import UserError
from mixtura.multitask.tasks import Task, check_tasks


class Balance(nn.Module):
    """Base: every task's loss times the weight that its `Task` names.

    Args:
        tasks: what the losses are of.

    Raises:
        UserError: in `forward`, losses of other tasks.

    Example:
        >>> balance = Fixed([Task(name="a"), Task(name="b", weight=3.0)])
        >>> balance({"a": torch.tensor(1.0), "b": torch.tensor(2.0)}).item()
        7.0
    """

    def __init__(self, tasks: Sequence[Task]) -> None:
        super().__init__()
        self.tasks = check_tasks(tasks)
        self.register_buffer("given", torch.tensor([task.weight for task in self.tasks]))
        self.given: Tensor

    def stacked(self, losses: Mapping[str, Tensor]) -> Tensor:
        """The losses in the tasks' order, times the given weights: (tasks,)."""
        names = [task.name for task in self.tasks]
        if set(names) != set(losses):
            raise UserError(f"expected losses of {', '.join(names)}, got those of {', '.join(losses) or 'none'}")
        loss_T = torch.stack([losses[name] for name in names])
        return loss_T * self.given.to(loss_T.dtype)

    def weights(self) -> dict[str, float]:
        """task -> what its loss is multiplied with now, for a log."""
        return {task.name: task.weight for task in self.tasks}

    def forward(self, losses: Mapping[str, Tensor], *, shared: Iterable[nn.Parameter] = ()) -> Tensor:
        """One loss to go back from: task -> scalar, into a scalar."""
        del shared
        return self.stacked(losses).sum()


class Fixed(Balance):
    """The weights that the tasks name; see `Balance`.

    Example:
        >>> Fixed([Task(name="a")]).weights()
        {'a': 1.0}
    """


class Uncertainty(Balance):
    """Each loss over the variance of its task's noise, which is learned: L exp(-s) c + s / 2, with c = 1/2 for squares.

    s = log sigma^2 begins at 0. Source: Kendall, Gal and Cipolla 2018, equations 7 and 10 (and 8 for their log form).

    Args:
        tasks: see `Balance`.

    Shapes:
        log_variance: (tasks,).

    Example:
        >>> balance = Uncertainty([Task(name="a"), Task(name="y", kind="regression")])
        >>> balance({"a": torch.tensor(1.0), "y": torch.tensor(4.0)}).item()
        3.0
    """

    def __init__(self, tasks: Sequence[Task]) -> None:
        super().__init__(tasks)
        self.log_variance = nn.Parameter(torch.zeros(len(self.tasks)))
        halves = [0.5 if task.kind == "regression" else 1.0 for task in self.tasks]
        self.register_buffer("factor", torch.tensor(halves))
        self.factor: Tensor

    def weights(self) -> dict[str, float]:
        """task -> what its loss is multiplied with now, for a log."""
        values = (self.given * self.factor * torch.exp(-self.log_variance.detach())).tolist()
        return {task.name: value for task, value in zip(self.tasks, values, strict=True)}

    def forward(self, losses: Mapping[str, Tensor], *, shared: Iterable[nn.Parameter] = ()) -> Tensor:
        """One loss to go back from: task -> scalar, into a scalar."""
        del shared
        precise_T = torch.exp(-self.log_variance) * self.factor
        return (self.stacked(losses) * precise_T + self.log_variance / 2).sum()


class GradNorm(Balance):
    """Weights under which all tasks pull on what they share with like strength, more so those that learn more slowly.

    The weights w are parameters. Their own loss is sum_i |w_i g_i - mean(w g) r_i^alpha|, where g_i is the norm of the
    gradient of task i's loss at the shared parameters and r_i = (L_i / L_i(0)) / mean of these; the model sees w as
    constants. Before each forward in training w is scaled to sum to the number of tasks. A task without a label in a
    batch leaves its weight alone. Source: Chen et al. 2018 (GradNorm), algorithm 1.

    Args:
        tasks: see `Balance`.
        alpha: how strongly slower tasks are favoured.

    Shapes:
        weight: (tasks,).

    Raises:
        UserError: a negative alpha; in `forward` in training, no shared parameters.

    Example:
        >>> model, balance = nn.Linear(1, 2), GradNorm([Task(name="a"), Task(name="b")])
        >>> a, b = model(torch.ones(1, 1)).square().unbind(-1)
        >>> balance({"a": a.sum(), "b": b.sum()}, shared=[model.weight]).backward()
        >>> balance.weight.grad.shape
        torch.Size([2])
    """

    def __init__(self, tasks: Sequence[Task], *, alpha: float = 1.5) -> None:
        super().__init__(tasks)
        if not alpha >= 0:
            raise UserError(f"expected alpha of at least 0, got {alpha}")
        self.alpha = alpha
        self.weight = nn.Parameter(torch.ones(len(self.tasks)))
        self.register_buffer("first", torch.full((len(self.tasks),), torch.nan))  # NaN: no labelled batch yet
        self.first: Tensor

    def weights(self) -> dict[str, float]:
        """task -> what its loss is multiplied with now, for a log."""
        values = (self.given * self._normed().detach()).tolist()
        return {task.name: value for task, value in zip(self.tasks, values, strict=True)}

    def _normed(self) -> Tensor:
        positive_T = self.weight.clamp(min=1e-3)
        return positive_T * (len(self.tasks) / positive_T.sum())

    def forward(self, losses: Mapping[str, Tensor], *, shared: Iterable[nn.Parameter] = ()) -> Tensor:
        """One loss to go back from: task -> scalar, into a scalar."""
        loss_T = self.stacked(losses)
        if not (self.training and torch.is_grad_enabled()):
            return (self._normed().detach() * loss_T).sum()
        parameters = list(shared)
        if not parameters:
            raise UserError("expected shared= parameters for GradNorm, got none; give model.shared_parameters()")
        with torch.no_grad():
            self.weight.copy_(self._normed())
            raw_T = loss_T.detach()
            self.first.copy_(self.first.where(~self.first.isnan(), raw_T.where(raw_T > 0, torch.nan)))
        norm_T = torch.stack([_norm_at(loss, parameters) for loss in loss_T])
        has_label_T = norm_T > 0
        progress_T = (raw_T / self.first).where(has_label_T, torch.nan)
        rate_T = (progress_T / progress_T.nanmean()).nan_to_num(1.0)
        pull_T = self.weight * norm_T
        goal_T = pull_T.detach().where(has_label_T, torch.nan).nanmean() * rate_T**self.alpha
        own = (pull_T - goal_T.nan_to_num(0.0)).abs().where(has_label_T, 0.0).sum()
        return (self.weight.detach() * loss_T).sum() + own


def _norm_at(loss: Tensor, parameters: Sequence[nn.Parameter]) -> Tensor:
    grads = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    squares = [grad.square().sum() for grad in grads if grad is not None]
    return torch.stack(squares).sum().sqrt() if squares else loss.new_zeros(())


BALANCES: dict[str, type[Balance]] = {"fixed": Fixed, "uncertainty": Uncertainty, "gradnorm": GradNorm}
