import math

import pytest
import torch
from torch import nn

from mixtura.errors import UserError
from mixtura.models.gpt import GPT, GPTConfig
from mixtura.train.optim import OptimConfig, build_optimizer, lr_share, parameter_groups, set_lr


@pytest.fixture
def model():
    return GPT(GPTConfig(dim=16, heads=2, hidden=8, num_experts=4, moe_every=2, shared_hidden=8, tie_weights=False))


def test_the_groups_are_those_of_the_roles_with_the_configured_rates(model):
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, OptimConfig(lr=0.1, router_lr=0.5, expert_lr=2.0, weight_decay=0.3))
    found = {(g["role"], g["peak_lr"], g["weight_decay"]): {names[p] for p in g["params"]} for g in groups}
    assert sum(map(len, found.values())) == len(names)
    assert found["routers", 0.05, 0.0] == {"blocks.1.feed_forward.router.weight"}
    assert found["experts", 0.2, 0.3] == {name for name in names.values() if ".experts." in name}
    assert found["shared", 0.1, 0.3] == {name for name in names.values() if ".shared." in name}
    assert found["rest", 0.1, 0.0] == {"embedding.weight"} | {name for name in names.values() if "norm" in name}
    assert {"head.weight", "blocks.0.attention.qkv.weight"} < found["rest", 0.1, 0.3]
    assert all(group["lr"] == group["peak_lr"] for group in groups)


def test_tied_weights_are_not_decayed():
    groups = parameter_groups(GPT(GPTConfig(num_experts=0)), OptimConfig())
    embedding = next(g for g in groups if any(p.shape[0] == 257 for p in g["params"]))
    assert (embedding["role"], embedding["weight_decay"]) == ("rest", 0.0)


def test_the_learning_rate_at_its_ends():
    def share(step):
        return lr_share(step, steps=100, warmup=10, min_lr=0.2)

    assert share(0) == pytest.approx(0.1)
    assert share(9) == share(10) == 1.0
    assert share(55) == pytest.approx(0.6)
    assert 0.2 < share(99) < 0.201
    assert share(100) == share(500) == pytest.approx(0.2)
    falling = [share(step) for step in range(10, 101)]
    assert falling == sorted(falling, reverse=True)


def test_short_runs_have_a_learning_rate_too():
    assert lr_share(0, steps=1, warmup=0, min_lr=0.0) == 1.0
    assert lr_share(2, steps=3, warmup=100, min_lr=0.0) == pytest.approx(0.03)
    assert math.isfinite(lr_share(5, steps=5, warmup=5, min_lr=0.0))


def test_each_group_follows_its_own_peak(model):
    optimizer = build_optimizer(model, OptimConfig(lr=0.1, router_lr=0.5, expert_lr=2.0))
    set_lr(optimizer, 0.5)
    rates = {group["role"]: group["lr"] for group in optimizer.param_groups}
    assert rates == pytest.approx({"routers": 0.025, "experts": 0.1, "shared": 0.05, "rest": 0.05})


def test_the_optimizer_takes_the_configured_decays():
    layer = nn.Linear(1, 1, bias=False)
    optimizer = build_optimizer(layer, OptimConfig(lr=0.1, weight_decay=0.5, beta1=0.5, beta2=0.75))
    before = layer.weight.item()
    layer.weight.grad = torch.ones(1, 1)
    optimizer.step()
    assert layer.weight.item() == pytest.approx(before * (1 - 0.05) - 0.1, abs=1e-6)
    assert optimizer.param_groups[0]["betas"] == (0.5, 0.75)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": 0}, "optim.lr: expected more than 0, got 0"),
        ({"lr": math.nan}, "optim.lr: expected more than 0, got nan"),
        ({"lr": math.inf}, "optim.lr: expected a finite number, got inf"),
        ({"grad_clip": math.inf}, "optim.grad_clip: expected a finite number, got inf"),
        ({"router_lr": -1}, "optim.router_lr: expected more than 0"),
        ({"weight_decay": -0.1}, "optim.weight_decay: expected at least 0"),
        ({"beta2": 1.0}, "optim.beta2: expected at least 0 and below 1, got 1.0"),
        ({"min_lr": 1.0}, "optim.min_lr: expected at least 0 and below 1"),
    ],
)
def test_values_out_of_range_are_refused(changes, message):
    with pytest.raises(UserError, match=message.replace(".", r"\.")):
        OptimConfig(**changes)
