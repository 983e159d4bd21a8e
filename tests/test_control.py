"""The balance controller: its law by hand, its state, and a drifting router that it drives to the target."""

import copy
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import mixtura as mx
from mixtura import UserError
from tests.routings import make_routing


def make_layer(coefficient=0.01, **options) -> mx.MoE:
    losses = {"load_balance": coefficient, "z": 1e-3}
    return mx.MoEConfig(
        **{"dim": 4, "hidden": 8, "num_experts": 4, "k": 1, "router": "switch", "losses": losses} | options
    ).build()


def logged(*counts):
    """Records of forwards with these loads."""
    return [
        SimpleNamespace(routing=make_routing([[e] for e, n in enumerate(row) for _ in range(n)], num_experts=len(row)))
        for row in counts
    ]


class TestLaw:
    @pytest.mark.parametrize(
        ("counts", "imbalance", "log_step"),
        [
            ([1, 1, 1, 1], 1.0, math.log(1 / 1.5)),
            ([3, 2, 2, 1], 1.5, 0.0),
            ([4, 2, 1, 1], 2.0, math.log(2 / 1.5)),
            ([9, 0, 0, 0], 4.0, math.log(4 / 1.5)),
        ],
    )
    def test_by_hand(self, counts, imbalance, log_step):
        layer = make_layer()
        controller = mx.BalanceController(layer, target=1.5, rate=0.1)
        assert controller.step({"": logged(counts)}) == {"": imbalance}
        assert layer.losses["load_balance"] == pytest.approx(0.01 * math.exp(0.1 * log_step))
        assert layer.losses["z"] == 1e-3
        assert controller.coefficients() == {"": layer.losses["load_balance"]}

    def test_one_step_is_bounded_and_so_is_the_coefficient(self):
        layer = make_layer(num_experts=8)
        controller = mx.BalanceController(layer, target=1.01, rate=0.5, bounds=(0.009, 0.02))
        controller.step({"": logged([9] + [0] * 7)})  # log(8 / 1.01) is cut to 1
        assert layer.losses["load_balance"] == pytest.approx(0.01 * math.exp(0.5))
        controller.step({"": logged([9] + [0] * 7)})
        assert layer.losses["load_balance"] == 0.02
        for _ in range(200):
            controller.step({"": logged([1] * 8)})
        assert layer.losses["load_balance"] == 0.009

    def test_micro_batches_of_a_step_are_counted_together(self):
        controller = mx.BalanceController(make_layer(num_experts=2))
        assert controller.step({"": logged([4, 0], [0, 4])}) == {"": 1.0}

    def test_each_layer_has_its_own(self):
        model = nn.Sequential(make_layer(), make_layer(losses={"z": 1.0}), make_layer())
        controller = mx.BalanceController(model, target=1.5, rate=0.1)
        seen = controller.step({"0": logged([4, 0, 0, 0]), "1": logged([1, 1, 1, 1]), "2": logged([1, 1, 1, 1])})
        assert seen == {"0": 4.0, "2": 1.0}
        assert model[0].losses["load_balance"] > 0.01 > model[2].losses["load_balance"]
        assert model[1].losses == {"z": 1.0}

    def test_padding_alone_moves_nothing(self):
        layer = make_layer()
        controller = mx.BalanceController(layer)
        with mx.record(layer) as log:
            layer(torch.randn(3, 4), mask=torch.zeros(3, dtype=torch.bool))
        assert controller.step(log) == {}
        assert layer.losses["load_balance"] == 0.01


def drift(steps, *, target, controlled):
    """Train a router that a steady force pulls towards its first expert; the imbalance of every step.

    The force adds a constant to the first expert's logit in each step, as a task would that rewards that expert; the
    balance loss is all that resists it.
    """
    torch.manual_seed(0)
    layer = make_layer(coefficient=0.01, dim=8)
    optimizer = torch.optim.SGD(layer.router.parameters(), lr=1.0)
    controller = mx.BalanceController(layer, target=target, rate=0.1, bounds=(1e-4, 10.0))
    seen = []
    for _ in range(steps):
        x = torch.randn(512, 8)
        x[:, 0] = 1.0  # what the force acts through
        with mx.record(layer) as log:
            layer(x).mul(0).sum().backward()
        with torch.no_grad():
            layer.router.weight[0, 0] += 0.02
        optimizer.step()
        optimizer.zero_grad()
        before = dict(layer.losses)
        seen += controller.step(log).values()
        if not controlled:
            layer.losses.update(before)
    return seen


class TestFeedback:
    @pytest.mark.parametrize("target", [1.5, 2.0])
    def test_a_drifting_router_is_driven_into_the_target_band(self, target):
        seen = drift(300, target=target, controlled=True)
        last = seen[-100:]
        assert sum(last) / len(last) == pytest.approx(target, rel=0.1)
        assert all(0.75 * target < imbalance < 1.25 * target for imbalance in last)

    def test_without_it_the_same_coefficient_loses(self):
        seen = drift(300, target=1.5, controlled=False)
        assert min(seen[-100:]) > 3  # of 4 at most


class TestState:
    def test_a_copy_goes_on_alike(self):
        layer = make_layer()
        controller = mx.BalanceController(layer, rate=0.3)
        controller.step({"": logged([4, 1, 1, 1])})
        other = make_layer()
        again = mx.BalanceController(other, rate=0.3)
        again.load_state_dict(copy.deepcopy(controller.state_dict()))
        assert other.losses == layer.losses
        for each in (controller, again):
            each.step({"": logged([1, 1, 1, 1])})
        assert other.losses == layer.losses

    def test_the_state_survives_a_safe_file(self, tmp_path):
        controller = mx.BalanceController(make_layer())
        torch.save(controller.state_dict(), tmp_path / "state.pt")
        assert torch.load(tmp_path / "state.pt", weights_only=True) == controller.state_dict()

    def test_of_another_model(self):
        controller = mx.BalanceController(make_layer())
        state = mx.BalanceController(nn.Sequential(make_layer())).state_dict()
        with pytest.raises(
            UserError, match=r"of 'load_balance' in the layers \[''\], got that of 'load_balance' in \['0'\]"
        ):
            controller.load_state_dict(state)
        with pytest.raises(UserError, match="got that of 'load_balance'"):
            mx.BalanceController(make_layer(), loss="z").load_state_dict(controller.state_dict())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": 1.0}, "expected a target imbalance .* above 1, got 1.0"),
        ({"rate": 0.0}, "expected a rate above 0, got 0.0"),
        ({"bounds": (0.0, 1.0)}, r"expected bounds with 0 < smallest <= largest coefficient, got \(0.0, 1.0\)"),
        ({"loss": "gshard"}, "expected a model with layers whose losses hold 'gshard' above 0, got none"),
    ],
)
def test_what_cannot_be_controlled(options, message):
    with pytest.raises(UserError, match=message):
        mx.BalanceController(make_layer(), **options)


def test_a_log_without_the_layer():
    with pytest.raises(UserError, match="expected a log with a forward of every controlled layer, got none of '0'"):
        mx.BalanceController(nn.Sequential(make_layer())).step({})
