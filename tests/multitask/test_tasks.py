"""Losses of labelled rows, by hand."""

import math

import pytest
import torch

from mixtura.errors import UserError
from mixtura.multitask.tasks import Prediction, Task, both, check_tasks, task_losses

TASKS = (Task(name="b"), Task(name="m", kind="multiclass", classes=3), Task(name="r", kind="regression"))


def said(**scores):
    return Prediction(tasks=tuple(t for t in TASKS if t.name in scores), scores=scores, gates=())


def test_each_kind_has_its_loss():
    losses = task_losses(
        said(b=torch.tensor([0.0, 0.0]), m=torch.zeros(2, 3), r=torch.tensor([1.0, 2.0])),
        {"b": torch.tensor([1.0, 0.0]), "m": torch.tensor([2.0, 0.0]), "r": torch.tensor([0.0, 4.0])},
    )
    assert losses["b"].item() == pytest.approx(math.log(2))
    assert losses["m"].item() == pytest.approx(math.log(3))
    assert losses["r"].item() == pytest.approx((1 + 4) / 2)


@pytest.mark.parametrize("missing", [torch.nan, -1.0])
def test_rows_without_a_label_are_left_out(missing):
    scores = torch.tensor([3.0, -2.0, 5.0], requires_grad=True)
    loss = task_losses(said(b=scores), {"b": torch.tensor([1.0, missing, missing])})["b"]
    assert loss.item() == pytest.approx(math.log1p(math.exp(-3)))
    loss.backward()
    assert scores.grad[1:].tolist() == [0.0, 0.0]


def test_integers_are_labels_too():
    losses = task_losses(
        said(b=torch.zeros(3), m=torch.zeros(3, 3)), {"b": torch.tensor([1, 0, -1]), "m": torch.tensor([2, -1, 0])}
    )
    assert losses["m"].item() == pytest.approx(math.log(3))


def test_no_label_at_all_is_zero_with_a_gradient():
    scores = torch.zeros(2, requires_grad=True)
    loss = task_losses(said(r=scores), {"r": torch.full((2,), torch.nan)})["r"]
    loss.backward()
    assert loss.item() == 0
    assert scores.grad.tolist() == [0.0, 0.0]


def test_weights_make_a_weighted_mean():
    scores, labels = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.0, 0.0, torch.nan])
    for weights in (torch.tensor([1.0, 3.0, 9.0]), {"r": torch.tensor([1.0, 3.0, 9.0])}):
        assert task_losses(said(r=scores), {"r": labels}, weights=weights)["r"].item() == (1 * 1 + 3 * 4) / 4
    assert task_losses(said(r=scores), {"r": labels}, weights={"b": scores})["r"].item() == 2.5


def test_predictions_are_probabilities_and_values():
    told = said(b=torch.zeros(1), m=torch.zeros(1, 3), r=torch.tensor([7.0])).predictions()
    assert told["b"].item() == 0.5
    assert told["m"].sum().item() == pytest.approx(1)
    assert told["r"].item() == 7


@pytest.mark.parametrize(("a", "b"), [(0.3, -1.2), (40.0, 40.0), (-50.0, 3.0), (90.0, -90.0)])
def test_both_is_the_logit_of_the_product(a, b):
    a, b = torch.tensor([a, b], dtype=torch.float64)
    p = a.sigmoid() * b.sigmoid()
    rest = b.neg().sigmoid() + b.sigmoid() * a.neg().sigmoid()  # 1 - p without cancellation
    torch.testing.assert_close(both(a, b), p.log() - rest.log())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Task(name=""), "expected a task with a name"),
        (lambda: Task(name="a", kind="x"), "task 'a': expected a kind among binary, regression, multiclass, got 'x'"),
        (lambda: Task(name="a", classes=3), "task 'a': expected 2 classes, or more of a multiclass task, got 3"),
        (lambda: Task(name="a", weight=0.0), "task 'a': expected a weight above 0, got 0.0"),
        (lambda: Task(name="a", kind="regression", after="b"), "task 'a': expected kind binary with after='b'"),
        (lambda: check_tasks([Task(name="a", after="b"), Task(name="b")]), "an earlier binary task .there is none."),
        (lambda: task_losses(said(b=torch.zeros(2)), {}), "expected labels of task 'b', got those of none"),
        (lambda: task_losses(said(b=torch.zeros(2)), {"b": torch.zeros(3)}), r"labels of shape \(2,\), got \(3,\)"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(UserError, match=message):
        make()
