"""Weights of tasks: the papers' formulas by hand, and what they do in training."""

import math

import pytest
import torch

from mixtura.errors import UserError
from mixtura.multitask import BALANCES, MMoE, SharedBottom, Task, task_losses
from mixtura.multitask.balance import Fixed, GradNorm, Uncertainty

TASKS = [Task(name="a"), Task(name="y", kind="regression", weight=2.0)]


def test_fixed_takes_the_tasks_weights():
    assert Fixed(TASKS)({"y": torch.tensor(3.0), "a": torch.tensor(1.0)}).item() == 7
    assert Fixed(TASKS).weights() == {"a": 1.0, "y": 2.0}


def test_uncertainty_is_kendalls_formula():
    balance = Uncertainty(TASKS)
    with torch.no_grad():
        balance.log_variance.copy_(torch.tensor([math.log(4), math.log(9)]))
    got = balance({"a": torch.tensor(1.0), "y": torch.tensor(3.0)}).item()
    assert got == pytest.approx(1 / 4 + math.log(4) / 2 + 2 * 3 / (2 * 9) + math.log(9) / 2)
    assert balance.weights() == pytest.approx({"a": 1 / 4, "y": 2 / 18})


def test_uncertainty_finds_the_noise_of_a_regression():
    balance = Uncertainty([Task(name="y", kind="regression")])
    optimizer = torch.optim.Adam(balance.parameters(), lr=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        balance({"y": torch.tensor(0.25)}).backward()
        optimizer.step()
    assert balance.log_variance.exp().item() == pytest.approx(0.25, rel=1e-2)


def test_gradnorm_gradient_by_hand():
    shared = torch.nn.Parameter(torch.tensor([1.0, 1.0]))
    balance = GradNorm([Task(name="a"), Task(name="b")], alpha=1.0)
    losses = {"a": 3 * shared[0], "b": 1 * shared[1]}
    balance(losses, shared=[shared]).backward()
    # Norms 3 and 1, their mean 2, both tasks learn alike: |3 w_a - 2| + |w_b - 2| at w = 1.
    assert balance.weight.grad.tolist() == [3.0, -1.0]
    assert shared.grad.tolist() == [3.0, 1.0]


def test_gradnorm_favours_the_task_that_learns_slowly():
    shared = torch.nn.Parameter(torch.tensor([1.0, 1.0]))
    balance = GradNorm([Task(name="a"), Task(name="b")], alpha=1.0)
    for size in (1.0, 0.5):  # b's loss halves, a's stays
        balance.zero_grad()
        balance({"a": shared[0], "b": size * shared[1] + shared[1] * 0}, shared=[shared]).backward()
    # Norms 1 and .5, mean .75, rates 1 / .75 and .5 / .75: goals 1 and .5, which are reached.
    assert balance.weight.grad.tolist() == [0.0, 0.0]


def test_gradnorm_evens_out_losses_of_different_size():
    torch.manual_seed(0)
    tasks = [Task(name="a", kind="regression"), Task(name="b", kind="regression")]
    model, balance = SharedBottom(None, tasks=tasks, dim=4, bottom=(8,)), GradNorm(tasks, alpha=0.0)
    optimizer = torch.optim.Adam([*model.parameters(), *balance.parameters()], lr=1e-2)
    x = torch.randn(64, 4)
    for _ in range(60):
        losses = task_losses(model(x), {"a": x[:, 0], "b": 20 * x[:, 1]})
        optimizer.zero_grad()
        balance(losses, shared=model.shared_parameters()).backward()
        optimizer.step()
    weights = balance.weights()
    assert weights["a"] > 2 * weights["b"]
    assert sum(weights.values()) == pytest.approx(2)


def test_a_task_without_labels_leaves_its_weight_alone():
    shared = torch.nn.Parameter(torch.ones(2))
    balance = GradNorm([Task(name="a"), Task(name="b")])
    balance({"a": shared.sum(), "b": shared.sum() * 0}, shared=[shared]).backward()
    assert balance.weight.grad.tolist()[1] == 0
    assert balance.weight.grad.isfinite().all()


@pytest.mark.parametrize("name", BALANCES)
def test_every_balance_trains_a_model(name):
    torch.manual_seed(0)
    model, balance = MMoE(None, tasks=TASKS, dim=4, num_experts=3, expert=(8,)), BALANCES[name](TASKS)
    optimizer = torch.optim.Adam([*model.parameters(), *balance.parameters()], lr=1e-2)
    x = torch.randn(64, 4)
    labels = {"a": (x[:, 0] > 0).float(), "y": x[:, 1]}
    first = None
    for _ in range(50):
        losses = task_losses(model(x), labels)
        optimizer.zero_grad()
        balance(losses, shared=model.shared_parameters()).backward()
        optimizer.step()
        first = first or {task: loss.item() for task, loss in losses.items()}
    assert all(loss.item() < 0.7 * first[task] for task, loss in losses.items())
    assert balance.eval()(losses).isfinite()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GradNorm(TASKS, alpha=-1.0), "expected alpha of at least 0, got -1.0"),
        (lambda: GradNorm(TASKS)({"a": torch.ones(()), "y": torch.ones(())}), "expected shared= parameters"),
        (lambda: Fixed(TASKS)({"a": torch.ones(())}), "expected losses of a, y, got those of a"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(UserError, match=message):
        make()
