"""Replay: the same choices, live weights, also under recomputation, once per forward."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import mixtura as mx
from mixtura import UserError


def make_model():
    torch.manual_seed(0)
    recipe = mx.MoEConfig(dim=6, hidden=8, num_experts=5, k=2)
    model = nn.Sequential(recipe.build(), recipe.build())
    for layer in model:
        nn.init.normal_(layer.router.weight)
    return model


def moved(model):
    """The model some training later: other routers."""
    other = copy.deepcopy(model)
    for layer in other:
        nn.init.normal_(layer.router.weight)
    return other


def choices(log):
    return {name: [record.routing.expert_N.tolist() for record in records] for name, records in log.items()}


def test_the_choices_are_the_logged_ones_and_the_weights_are_live():
    model, inputs = make_model(), [torch.randn(4, 6), torch.randn(7, 6)]
    with mx.record(model) as log:
        for x in inputs:
            model(x)
    later = moved(model)
    with mx.record(later) as free:
        for x in inputs:
            later(x)
    assert choices(free) != choices(log)
    with mx.replay(later, log), mx.record(later) as again:
        for x in inputs:
            later(x).sum().backward()
    assert choices(again) == choices(log)
    routing = again["0"][0].routing
    expected = routing.logits_TE.gather(1, routing.expert_N.view(4, 2)).softmax(-1)
    torch.testing.assert_close(routing.weight_N.view(4, 2), expected)
    assert later[0].router.weight.grad.norm() > 0


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_recomputation_walks_back_through_the_log(use_reentrant):
    model = make_model()
    inputs = [torch.randn(4, 6, requires_grad=True) for _ in range(3)]
    with mx.record(model) as log:
        for x in inputs:
            model(x)
    later = moved(model)

    def total(run):
        later.zero_grad()
        with mx.replay(later, log):
            sum((step + 1) * run(x).square().sum() for step, x in enumerate(inputs)).backward()
        return [parameter.grad.clone() for parameter in later.parameters()]

    plain = total(later)
    recomputed = total(lambda x: checkpoint(later, x, use_reentrant=use_reentrant))
    torch.testing.assert_close(recomputed, plain)


def test_checkpointing_can_replay_its_own_forward():
    model, x = make_model(), torch.randn(4, 6, requires_grad=True)
    log, seen = {}, []

    def contexts():
        recorder = mx.record(model)

        class Keep:
            def __enter__(self):
                self.log = recorder.__enter__()

            def __exit__(self, *error):
                log.update(self.log)
                recorder.__exit__(*error)

        class Again:
            def __enter__(self):
                self.block = mx.replay(model, log)
                self.block.__enter__()

            def __exit__(self, *error):
                seen.append(choices(log))
                self.block.__exit__(*error)

        return Keep(), Again()

    y = checkpoint(model, x, use_reentrant=False, context_fn=contexts)
    nothing_chosen = [layer.router.weight.detach().clone() for layer in model]
    y.sum().backward()
    assert seen == [choices(log)]
    assert all(torch.equal(layer.router.weight, w) for layer, w in zip(model, nothing_chosen, strict=True))


def test_what_cannot_be_replayed_is_told():
    model, x = make_model(), torch.randn(4, 6)
    with mx.record(model) as log:
        model(x)
    with (
        pytest.raises(UserError, match="expected a log of MoE layers of this model, got the name '0'"),
        mx.replay(model[0], log),
    ):
        pass
    with mx.replay(model, log):
        model(x)
        with pytest.raises(UserError, match="at least 2 forwards of this layer, got 1"):
            model(x)
    with mx.replay(model, log), pytest.raises(UserError, match="expected 4 tokens, as recorded, got 3"):
        model(x[:3])


@pytest.mark.parametrize("name", sorted(set(mx.routers.ROUTERS) - {"soft"}))  # slots are nobody's choice
def test_every_router_can_be_replayed(name):
    kind = mx.routers.ROUTERS[name]
    layer = mx.MoEConfig(dim=6, hidden=8, num_experts=5, k=2 if kind.takes_k else None, router=name).build()
    known = {"context": torch.arange(30)} if kind.needs_context else {}
    moving = [p for p in layer.router.parameters() if p.ndim > 1]
    for parameter in moving:
        nn.init.normal_(parameter)
    x = torch.randn(30, 6)
    with mx.record(layer) as log:
        y = layer(x, **known)
    with mx.replay(layer, log), mx.record(layer) as again:
        torch.manual_seed(1)
        same = layer(x, **known)
    assert choices(again) == choices(log)
    if name not in ("noisy_topk", "switch_gate"):  # their weights see fresh noise
        torch.testing.assert_close(same, y)
    for parameter in moving:
        nn.init.normal_(parameter)
    with mx.replay(layer, log), mx.record(layer) as again:
        layer(x, **known).square().sum().backward()
    assert choices(again) == choices(log)
    then, now = log[""][0].routing, again[""][0].routing
    assert torch.equal(then.weight_N == 0, now.weight_N == 0)
    assert now.weight_N.isfinite().all()
    if moving:
        assert not torch.allclose(then.probs_TE, now.probs_TE)
        assert layer.router.weight.grad.norm() > 0
    with mx.replay(layer, {"": [log[""][0]]}), pytest.raises(UserError, match="expected 30 tokens, as recorded, got 7"):
        layer(x[:7], **{key: value[:7] for key, value in known.items()})


@pytest.mark.parametrize("name", mx.routers.ROUTERS)
def test_no_tokens_can_be_replayed(name):
    layer = mx.MoEConfig(dim=6, hidden=8, num_experts=5, router=name).build()
    known = {"context": torch.arange(0)} if layer.router.needs_context else {}
    with mx.record(layer) as log:
        layer(torch.zeros(0, 6), **known)
    with mx.replay(layer, log):
        assert layer(torch.zeros(0, 6), **known).shape == (0, 6)
