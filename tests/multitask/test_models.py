"""Architectures against loops over rows, tasks and experts."""

from functools import partial

import pytest
import torch
from torch import nn

import mixtura as mx
from mixtura.multitask import PLE, MMoE, OMoE, SharedBottom, TableEncoder, Task

A, B = Task(name="a"), Task(name="b", kind="regression")
X = torch.randn(6, 5, generator=torch.Generator().manual_seed(3))


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def expert(stack, e, x_D):
    """One expert of a stack on one row."""
    for weight, bias in zip(stack.weights, stack.biases, strict=True):
        x_D = (weight[e] @ x_D + bias[e]).clamp(min=0)
    return x_D


def gate(router, x_D):
    return (router.weight @ x_D).softmax(0)


def run_tower(tower, h_D):
    for layer in tower:
        h_D = layer.weight @ h_D + layer.bias if isinstance(layer, nn.Linear) else h_D.clamp(min=0)
    return h_D[0]


def mixed(weights, outputs):
    return sum(weight * output for weight, output in zip(weights, outputs, strict=True))


def compare(model, by_row):
    """Outputs and every gradient of a model and of its loop."""
    said = model(X).scores
    got = torch.stack([said[task.name] for task in model.tasks], 1)
    expected = torch.stack([torch.stack(by_row(x)) for x in X])
    torch.testing.assert_close(got, expected)
    direction = torch.randn_like(got)
    gradients = [torch.autograd.grad((y * direction).sum(), list(model.parameters())) for y in (got, expected)]
    for first, second in zip(*gradients, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-5)


def test_shared_bottom_is_one_network_and_towers():
    model = SharedBottom(None, tasks=[A, B], dim=5, bottom=(7, 4), tower=(3,))
    bottom = model.levels[0].experts[0]
    compare(model, lambda x: [run_tower(tower, expert(bottom, 0, x)) for tower in model.towers])


def test_omoe_has_one_mixture_for_all():
    model = OMoE(None, tasks=[A, B], dim=5, num_experts=3, expert=(4,), tower=(3,))
    level = model.levels[0]

    def by_row(x):
        outputs = [expert(level.experts[0], e, x) for e in range(3)]
        return [run_tower(tower, mixed(gate(level.gates[0], x), outputs)) for tower in model.towers]

    compare(model, by_row)


@pytest.mark.parametrize("widths", [(4,), (6, 4)])
def test_mmoe_has_a_gate_for_each_task(widths):
    model = MMoE(None, tasks=[A, B], dim=5, num_experts=3, expert=widths, tower=(3,))
    level = model.levels[0]

    def by_row(x):
        outputs = [expert(level.experts[0], e, x) for e in range(3)]
        return [
            run_tower(tower, mixed(gate(router, x), outputs))
            for router, tower in zip(level.gates, model.towers, strict=True)
        ]

    compare(model, by_row)


def test_stacked_mmoe_feeds_its_experts_by_a_shared_gate():
    model = MMoE(None, tasks=[A, B], dim=5, num_experts=3, levels=2, expert=(4,), tower=(3,))
    first, second = model.levels
    assert list(first.mixes) == ["a", "b", None]
    assert list(second.mixes) == ["a", "b"]

    def by_row(x):
        outputs = [expert(first.experts[0], e, x) for e in range(3)]
        a, b, shared = (mixed(gate(router, x), outputs) for router in first.gates)
        outputs = [expert(second.experts[0], e, shared) for e in range(3)]
        told = [mixed(gate(router, h), outputs) for router, h in zip(second.gates, (a, b), strict=True)]
        return [run_tower(tower, h) for tower, h in zip(model.towers, told, strict=True)]

    compare(model, by_row)


def test_ple_extracts_in_levels():
    model = PLE(
        None, tasks=[A, B], dim=5, shared_experts=2, task_experts={"a": 1, "b": 3}, levels=2, expert=(4,), tower=(3,)
    )
    first, second = model.levels
    assert first.groups == {"a": 1, "b": 3, None: 2}

    def level(at, inputs):
        outputs = {
            owner: [expert(stack, e, inputs[owner]) for e in range(count)]
            for (owner, count), stack in zip(at.groups.items(), at.experts, strict=True)
        }
        seen = {"a": [*outputs["a"], *outputs[None]], "b": [*outputs["b"], *outputs[None]]}
        seen[None] = [*outputs["a"], *outputs["b"], *outputs[None]]
        return {
            owner: mixed(gate(router, inputs[owner]), seen[owner])
            for owner, router in zip(at.mixes, at.gates, strict=True)
        }

    def by_row(x):
        told = level(second, level(first, {"a": x, "b": x, None: x}))
        return [run_tower(tower, told[task.name]) for task, tower in zip(model.tasks, model.towers, strict=True)]

    compare(model, by_row)


def test_a_gate_of_top_k_weighs_only_the_chosen():
    model = MMoE(None, tasks=[A, B], dim=5, num_experts=6, expert=(4,), gate=partial(mx.routers.TopK, k=1 + 1))
    weight = model(X).gates[0]["a"]
    assert ((weight > 0).sum(1) == 2).all()
    torch.testing.assert_close(weight.sum(1), torch.ones(len(X)))


def test_gates_are_heard_by_record_and_their_losses_collected():
    gates = partial(mx.routers.TopK, k=2)
    model = MMoE(None, tasks=[A, B], dim=5, expert=(4,), gate=gates, losses={"load_balance": 0.1})
    with mx.record(model) as log:
        model(X)
    assert list(log) == ["levels.0.gates.0", "levels.0.gates.1"]
    assert log["levels.0.gates.1"][0].counts_E().sum() == 2 * len(X)
    with mx.collect_losses(model) as losses:
        model(X)
    assert [name for name, _, _ in losses.weighted] == ["levels.0.gates.0", "levels.0.gates.1"]
    assert min(value.item() for _, _, value in losses.weighted) >= 0.1 - 1e-6


def test_after_multiplies_probabilities():
    tasks = [Task(name="click"), Task(name="buy", after="click")]
    model = SharedBottom(None, tasks=tasks, dim=5)
    said = model(X)
    alone = SharedBottom(None, tasks=[Task(name="click"), Task(name="buy")], dim=5)
    alone.load_state_dict(model.state_dict())
    click, buy = (alone(X).scores[name].sigmoid() for name in ("click", "buy"))
    torch.testing.assert_close(said.predictions()["buy"], click * buy)
    assert (said.predictions()["buy"] <= said.predictions()["click"]).all()


def test_an_encoder_of_a_table():
    model = MMoE(TableEncoder([4, 3], numbers=2, width=5), tasks=[A, B], num_experts=2)
    assert model.dim == 12
    assert model(torch.tensor([[3, 2]]), torch.zeros(1, 2)).scores["a"].shape == (1,)


def test_noise_in_experts_stops_in_evaluation():
    model = MMoE(None, tasks=[A], dim=5, expert=(16,), dropout=0.5)
    assert not torch.equal(model(X).scores["a"], model(X).scores["a"])
    model.eval()
    assert torch.equal(model(X).scores["a"], model(X).scores["a"])


def test_it_compiles():
    model = MMoE(None, tasks=[A, B], dim=5, expert=(4,)).eval()
    compiled = torch.compile(model, backend="eager")
    torch.testing.assert_close(compiled(X).scores["b"], model(X).scores["b"])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MMoE(None, tasks=[A]), "expected dim=, the width of what the encoder gives"),
        (lambda: MMoE(None, tasks=[], dim=5), "expected at least one task, got none"),
        (lambda: MMoE(None, tasks=[A, A], dim=5), "expected tasks with different names, got a, a"),
        (lambda: MMoE(None, tasks=[A], dim=5, num_experts=0), "expected num_experts of at least 1, got 0"),
        (lambda: PLE(None, tasks=[A], dim=5, task_experts=-1), "expected task_experts of at least 1|at least 0"),
        (lambda: PLE(None, tasks=[A], dim=5, task_experts={"x": 1}), "expected task_experts of tasks among a, got x"),
        (lambda: MMoE(None, tasks=[A], dim=5, gate={"x": mx.routers.Dense}), "expected gates of tasks among a, got x"),
        (lambda: MMoE(None, tasks=[A], dim=5, losses={"x": 1.0}), "expected losses among .*, got x"),
        (lambda: MMoE(None, tasks=[A], dim=5, expert=()), "expected experts of at least one layer"),
        (lambda: MMoE(None, tasks=[A], dim=5, dropout=1.0), "expected 0 <= dropout < 1, got 1.0"),
        (lambda: MMoE(None, tasks=[A], dim=5).experts_of("x"), "expected a task among a, got 'x'"),
        (lambda: MMoE(None, tasks=[A], dim=4)(X), r"expected an encoder's output of shape \(B, 4\), got \(6, 5\)"),
        (lambda: MMoE(None, tasks=[A], dim=5, gate=partial(mx.routers.Soft))(X), "expected a gate that weighs experts"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(mx.UserError, match=message):
        make()
