"""One table of properties for every architecture: a new one is one row."""

from functools import partial

import pytest
import torch

import mixtura as mx
from mixtura.multitask import AITM, MODELS, PLE, MMoE, OMoE, SharedBottom, Task, task_losses

DIM, ROWS = 5, 7
TASKS = [Task(name="click"), Task(name="class", kind="multiclass", classes=3), Task(name="a b.c", kind="regression")]


def grouped(num_experts, dim):
    return mx.GroupedMLP(num_experts=num_experts, dim=dim, hidden=6, bias=True)


def modules(num_experts, dim):
    return mx.ModuleExperts([torch.nn.Linear(dim, 4) for _ in range(num_experts)])


TOP2, TOP1 = partial(mx.routers.TopK, k=2), mx.routers.Switch
CASES = {
    "single task": lambda: SharedBottom(None, tasks=TASKS[:1], dim=DIM),
    "shared bottom": lambda: SharedBottom(None, tasks=TASKS, dim=DIM, bottom=(8, 6), tower=(4,)),
    "omoe": lambda: OMoE(None, tasks=TASKS, dim=DIM, num_experts=4, expert=(6,)),
    "mmoe": lambda: MMoE(None, tasks=TASKS, dim=DIM, num_experts=4, expert=(6, 5), tower=(4,)),
    "mmoe, two levels": lambda: MMoE(None, tasks=TASKS, dim=DIM, num_experts=4, levels=2, expert=(6,)),
    "mmoe, top 1 of 8": lambda: MMoE(None, tasks=TASKS, dim=DIM, num_experts=8, expert=(6,), gate=TOP1),
    "mmoe, grouped": lambda: MMoE(None, tasks=TASKS, dim=DIM, num_experts=4, expert=grouped),
    "mmoe, grouped, top 1 of 8": lambda: MMoE(None, tasks=TASKS, dim=DIM, expert=grouped, gate=TOP1),
    "mmoe, modules": lambda: MMoE(None, tasks=TASKS, dim=DIM, num_experts=3, expert=modules),
    "mmoe, modules, top 1 of 8": lambda: MMoE(None, tasks=TASKS, dim=DIM, expert=modules, gate=TOP1),
    "mmoe, gates of two kinds": lambda: MMoE(None, tasks=TASKS, dim=DIM, expert=(6,), gate={"click": TOP2}),
    "cgc": lambda: PLE(None, tasks=TASKS, dim=DIM, levels=1, expert=(6,)),
    "ple": lambda: PLE(None, tasks=TASKS, dim=DIM, expert=(6,), task_experts={"click": 1, "class": 0}),
    "ple, top 1": lambda: PLE(None, tasks=TASKS, dim=DIM, expert=grouped, gate=TOP1, shared_experts=3),
    "aitm": lambda: AITM(None, tasks=TASKS, dim=DIM, network=(6,)),
    "aitm of events": lambda: AITM(None, tasks=[TASKS[0], Task(name="buy")], dim=DIM, network=(6,)),
}


@pytest.fixture(params=CASES)
def model(request):
    torch.manual_seed(0)
    return CASES[request.param]()


@pytest.fixture
def x():
    return torch.randn(ROWS, DIM, generator=torch.Generator().manual_seed(1))


def labels(model):
    every = {
        "click": torch.tensor([0.0, 1.0, torch.nan, 1.0, 0.0, 0.0, 1.0]),
        "class": torch.tensor([0.0, 2.0, 1.0, torch.nan, torch.nan, 0.0, 1.0]),
        "buy": torch.tensor([0.0, 1.0, torch.nan, 0.0, 0.0, 0.0, 1.0]),
        "a b.c": torch.tensor([0.5, torch.nan, -2.0, 1.0, 0.0, 3.0, 1.0]),
    }
    return {task.name: every[task.name] for task in model.tasks}


def test_scores_have_the_tasks_shapes(model, x):
    said = model(x)
    shapes = {task.name: (ROWS, 3) if task.kind == "multiclass" else (ROWS,) for task in model.tasks}
    assert {name: tuple(score.shape) for name, score in said.scores.items()} == shapes


def test_gates_are_distributions_over_named_experts(model, x):
    model.eval()
    for level, gates in enumerate(model(x).gates):
        for task, weight in gates.items():
            assert weight.shape == (ROWS, len(model.experts_of(task, level=level)))
            assert (weight >= 0).all()
            if "Switch" not in repr(model):  # whose weight is the chosen probability
                torch.testing.assert_close(weight.sum(1), torch.ones(ROWS))


def test_one_row_does_not_depend_on_the_others(model, x):
    model.eval()
    whole, alone = model(x).scores, model(x[2:3]).scores
    for name in whole:
        torch.testing.assert_close(whole[name][2:3], alone[name])


def test_every_parameter_gets_its_gradient(model, x):
    losses = task_losses(model(x), labels(model))
    torch.stack(list(losses.values())).sum().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None]
    sparse = "Switch" in repr(model)
    assert not without or (sparse and all("experts" in name for name in without))
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_a_missing_label_teaches_nothing(model, x):
    task = model.tasks[0].name
    gradient = []
    for value in (0.0, 1.0):
        model.zero_grad()
        told = labels(model)
        other = x.clone()
        other[2] += 100 * value  # the row without a label
        task_losses(model(other), told)[task].backward()
        gradient.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for first, second in zip(*gradient, strict=True):
        torch.testing.assert_close(first, second)


def test_weights_survive_saving(model, x, tmp_path):
    torch.save(model.state_dict(), tmp_path / "a.pt")
    expected = model.eval()(x).scores
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    model.load_state_dict(torch.load(tmp_path / "a.pt"))
    for name, score in model(x).scores.items():
        torch.testing.assert_close(score, expected[name])


def test_a_few_steps_lower_the_loss(model, x):
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    told, seen = labels(model), []
    for _ in range(40):
        loss = torch.stack(list(task_losses(model(x), told).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen.append(loss.item())
    assert seen[-1] < 0.8 * seen[0]


def test_every_architecture_is_in_the_table():
    assert {type(make()) for make in CASES.values()} == set(MODELS.values())
