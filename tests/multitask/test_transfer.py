"""AITM against numbers worked out by hand, and against a loop over rows."""

import math

import pytest
import torch
from torch import nn

import mixtura as mx
from mixtura.multitask import AITM, Task, task_losses
from mixtura.multitask.transfer import Transfer
from tests.multitask.test_models import X, compare, expert, run_tower

CHAIN = [Task(name="see"), Task(name="click"), Task(name="buy")]


def test_attention_between_two_vectors_by_hand():
    transfer = Transfer(2)
    with torch.no_grad():
        transfer.hand[0].weight.copy_(torch.tensor([[1.0, 0.0], [0.0, -1.0]]))
        transfer.hand[0].bias.copy_(torch.tensor([1.0, 0.0]))
        transfer.query.weight.copy_(torch.eye(2))
        transfer.key.weight.copy_(torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
        transfer.value.weight.copy_(2 * torch.eye(2))
    mixed, weight = transfer(torch.tensor([[1.0, 3.0]]), torch.tensor([[2.0, 5.0]]))
    # own (1, 3): <(1, 3), (3, 1)> = 6; handed ReLU(2 + 1, -5) = (3, 0): <(3, 0), (0, 3)> = 0.
    own = 1 / (1 + math.exp(-6 / math.sqrt(2)))
    torch.testing.assert_close(weight, torch.tensor([[own, 1 - own]]))
    torch.testing.assert_close(mixed, torch.tensor([[2 * own + 6 * (1 - own), 6 * own]]))


def test_each_task_hands_on_what_its_own_tower_saw():
    torch.manual_seed(0)
    model = AITM(None, tasks=CHAIN, dim=5, network=(6, 4), tower=(3,)).eval()

    def by_row(x):
        own = [expert(stack, 0, x) for stack in model.levels[0].experts]
        seen = [own[0]]
        for vector, transfer in zip(own[1:], model.transfers, strict=True):
            layer = transfer.hand[0]
            pair = [vector, (layer.weight @ seen[-1] + layer.bias).clamp(min=0)]
            scores = [(transfer.query.weight @ v) @ (transfer.key.weight @ v) / 2 for v in pair]
            weights = torch.stack(scores).softmax(0)
            seen.append(sum(w * (transfer.value.weight @ v) for w, v in zip(weights, pair, strict=True)))
        return [run_tower(tower, h) for tower, h in zip(model.towers, seen, strict=True)]

    compare(model, by_row)


def saying(*logits, calibrator=0.6, tasks=None):
    """A model that says the same of every row: its towers' last biases."""
    tasks = tasks or [Task(name=f"task {number}") for number in range(len(logits))]
    model = AITM(None, tasks=tasks, dim=5, tower=(), calibrator=calibrator)
    for tower, logit in zip(model.towers, logits, strict=True):
        nn.init.zeros_(tower[-1].weight)
        nn.init.constant_(tower[-1].bias, logit)
    return model


def test_a_later_event_more_probable_than_the_one_before_costs():
    model = saying(0.0, math.log(3), -math.log(3))  # probabilities 1/2, 3/4, 1/4
    with mx.collect_losses(model) as losses:
        model(X)
    assert [name for _, name, _ in losses.weighted] == ["excess", "excess"]
    found = [value.item() for _, _, value in losses.weighted]
    assert found == pytest.approx([0.6 * 0.25, 0.0])


def test_the_calibrator_acts_where_nobody_collects():
    model = saying(0.0, math.log(3))
    sum(score.sum() for score in model(X).scores.values()).backward()
    # d/da of .6 mean(sigmoid(b) - sigmoid(a)) is -.6 / 4; d/db is .6 * 3/16; each score itself gives one per row.
    assert model.towers[0][-1].bias.grad.item() == pytest.approx(len(X) - 0.6 / 4)
    assert model.towers[1][-1].bias.grad.item() == pytest.approx(len(X) + 0.6 * 3 / 16)


@pytest.mark.parametrize(
    "model",
    [
        lambda: saying(0.0, 1.0, calibrator=0.0),
        lambda: saying(0.0, 1.0).eval(),
        lambda: saying(0.0, 1.0, tasks=[Task(name="a"), Task(name="b", kind="regression")]),
    ],
)
def test_where_there_is_nothing_to_calibrate(model):
    model = model()
    with mx.collect_losses(model) as losses:
        model(X)
    assert not losses.weighted


def test_no_rows_cost_nothing():
    said = AITM(None, tasks=CHAIN, dim=5)(X[:0])
    total = sum(task_losses(said, {task.name: torch.zeros(0) for task in CHAIN}).values())
    assert total.item() == 0


def test_the_gates_say_what_was_handed_on():
    model = AITM(None, tasks=CHAIN, dim=5)
    gates = model(X).gates[0]
    assert list(gates) == ["click", "buy"]
    assert model.experts_of("buy") == ["own", "from click"]
    torch.testing.assert_close(gates["buy"].sum(1), torch.ones(len(X)))


@pytest.mark.parametrize("value", [-1.0, float("nan")])
def test_bad_input(value):
    with pytest.raises(mx.UserError, match="expected a calibrator of at least 0, got"):
        AITM(None, tasks=CHAIN, dim=5, calibrator=value)
