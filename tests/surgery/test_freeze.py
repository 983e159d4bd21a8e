import copy

import pytest
import torch

import mixtura as mx
from mixtura.errors import UserError
from mixtura.surgery.edit import add_experts, close_experts, open_experts
from mixtura.surgery.freeze import freeze_experts, unfreeze_experts
from tests.surgery.layers import build


def network():
    return torch.nn.Sequential(torch.nn.Linear(8, 8), build("topk"), torch.nn.Linear(8, 1))


def loss_of(model, x, y):
    return torch.nn.functional.mse_loss(model(x), y)


def train(model, x, y, *, steps=60):
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-2, weight_decay=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = loss_of(model, x, y)
        loss.backward()
        optimizer.step()
    return loss.item()


def test_new_experts_learn_a_new_task_and_the_old_one_is_kept_to_the_last_bit():
    model, x = network(), torch.randn(64, 8)
    old, new = x.sin().sum(1, keepdim=True), x.cos().sum(1, keepdim=True)
    train(model, x, old)
    kept = model(x).detach()
    old_experts = range(4)

    added = add_experts(model, 4, init="noise")
    mx.freeze(model, train=["experts", "routers"])
    freeze_experts(model, old_experts)
    torch.testing.assert_close(model(x), kept, rtol=0, atol=1e-5)
    kept = model(x).detach()

    open_experts(model)
    close_experts(model, old_experts)  # the new task is the new experts' own
    before = loss_of(model, x, new).item()
    assert train(model, x, new) < 0.5 * before

    open_experts(model, old_experts)
    close_experts(model, added)
    assert torch.equal(model(x), kept)
    assert loss_of(model, x, old).item() == loss_of(lambda _: kept, x, old).item()

    unfreeze_experts(model)
    assert torch.equal(model(x), kept)
    assert model[1].experts.up_proj.shape[0] == 8
    assert isinstance(model[1].experts.up_proj, torch.nn.Parameter)


def test_frozen_rows_stay_whatever_the_optimizer_does_and_the_others_get_their_own_gradient():
    layer, x = build("noisy_topk").eval(), torch.randn(30, 8)
    twin = copy.deepcopy(layer)
    freeze_experts(layer, [3, 0])
    for each in (layer, twin):
        each(x).square().sum().backward()
    learned = layer.experts.parametrizations.up_proj.original
    torch.testing.assert_close(learned.grad, twin.experts.up_proj.grad[[1, 2]], rtol=0, atol=1e-6)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9, weight_decay=0.5)
    optimizer.step()
    assert torch.equal(layer.experts.up_proj[[0, 3]], twin.experts.up_proj[[0, 3]])
    assert not torch.isclose(layer.experts.up_proj[[1, 2]], twin.experts.up_proj[[1, 2]]).any()
    assert torch.equal(layer.router.weight[[0, 3]], twin.router.weight[[0, 3]])
    before = layer(x)
    unfreeze_experts(layer)
    assert torch.equal(layer(x), before)
    assert layer.state_dict().keys() == twin.state_dict().keys()


def test_what_cannot_be_frozen_is_refused():
    layer = build("topk")
    with pytest.raises(UserError, match="some experts that learn, got all"):
        freeze_experts(layer, range(4))
    with pytest.raises(UserError, match=r"different experts from 0 to 3 of the layer, got \[7\]"):
        freeze_experts(layer, [7])
    freeze_experts(layer, [0])
    with pytest.raises(UserError, match="expected no frozen or adapted experts"):
        freeze_experts(layer, [1])
    with pytest.raises(UserError, match="without frozen or adapted parts, got some; unfreeze_experts"):
        add_experts(layer, 1)
