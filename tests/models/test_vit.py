"""The ViT: patches, which blocks are mixtures, every router, capacity and priority, gradients, refusals."""

import dataclasses

import pytest
import torch
from torch import nn

import mixtura as mx
from mixtura import Capacity, UserError
from mixtura.models.count import count_parameters
from mixtura.models.patches import patches_of
from mixtura.models.vit import ViT, ViTConfig

TINY = ViTConfig(image_size=8, patch_size=2, dim=12, layers=2, heads=2, hidden=16, expert_hidden=8, num_experts=4)
NO_NEED = {"capacity_factor": None, "losses": {}}
ROUTERS = {
    "v-moe": {},
    "switch": {"router": "switch", "router_options": {}, "k": 1, "losses": {"load_balance": 1e-2}},
    "sigmoid_bias": {"router": "sigmoid_bias", "router_options": {}, **NO_NEED},
    "soft": {"router": "soft", "router_options": {"slots_per_expert": 3}, "k": 4, **NO_NEED},
    "expert_choice": {"router": "expert_choice", "router_options": {}, **NO_NEED},
    "hash": {"router": "hash", "router_options": {}, **NO_NEED},
    "dense twin": {"num_experts": 0},
}
routers = pytest.mark.parametrize("options", ROUTERS.values(), ids=list(ROUTERS))


def make_model(**options) -> ViT:
    model = ViT(dataclasses.replace(TINY, **options))
    nn.init.normal_(model.head.weight)  # it starts as nothing, which would hide the rest
    return model


def images(count: int = 3) -> torch.Tensor:
    return torch.randn(count, 1, 8, 8)


@pytest.mark.parametrize(
    ("layers", "every", "last", "places"),
    [(4, 2, 0, [1, 3]), (6, 3, 0, [2, 5]), (6, 2, 2, [3, 5]), (5, 2, 1, [3]), (4, 1, 9, [1, 3])],
)
def test_every_nth_or_the_last_odd_blocks_are_mixtures(layers, every, last, places):
    model = make_model(layers=layers, moe_every=every, moe_last=last)
    assert [n for n, block in enumerate(model.blocks) if isinstance(block.feed_forward, mx.MoE)] == places


@routers
def test_every_parameter_gets_a_gradient(options):
    model = make_model(**options)
    x = images(8)
    model(x).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []
    for block in model.blocks:
        if isinstance(block.feed_forward, mx.MoE):  # of every single expert
            assert block.feed_forward.experts.up_proj.grad.flatten(1).any(1).all()


@routers
def test_an_image_is_classified_by_itself_where_routing_allows(options):
    model, x = make_model(**options).eval(), images(4)
    alone = torch.cat([model(image.unsqueeze(0)) for image in x])
    together = options.get("router") == "expert_choice"  # experts choose among the patches of the whole batch
    assert torch.allclose(model(x), alone, atol=1e-5) is not together


def test_the_twin_has_as_many_active_parameters():
    twins = [count_parameters(ViT(dataclasses.replace(ViTConfig(), num_experts=n))) for n in (8, 0)]
    routers = 2 * 8 * 48
    assert twins[0].active - routers == twins[1].active == twins[1].total
    assert twins[0].total > 1.5 * twins[1].total


def test_the_mean_of_the_patches_is_classified():
    model, x = make_model().eval(), images()
    hidden = model.embedding(patches_of(x, 2)) + model.position
    for block in model.blocks:
        hidden = block(hidden, context=torch.arange(16).expand(3, -1))
    expected = model.head(torch.stack([model.norm(h).sum(0) / 16 for h in hidden]))
    torch.testing.assert_close(model(x), expected)


def test_the_routing_of_v_moe_is_the_default_of_topk_alone():
    router = make_model().blocks[1].feed_forward.router
    assert (router.order, router.noise, router.renormalize) == ("softmax_topk", 0.25, False)
    own = make_model(router_options={"noise": 0.5}, losses={}).blocks[1].feed_forward.router
    assert (own.order, own.noise) == ("topk_softmax", 0.5)


def test_capacity_of_training_and_of_evaluation():
    layer = make_model(capacity_factor=1.5, eval_capacity_factor=0.5, policy="priority").blocks[1].feed_forward
    assert (layer.capacity, layer.eval_capacity) == (Capacity(factor=1.5), Capacity(factor=0.5))
    assert layer.policy == "priority"
    assert make_model().blocks[1].feed_forward.eval_capacity == Capacity()


def test_priority_keeps_the_patches_with_the_largest_weights():
    model, x = make_model(eval_capacity_factor=0.25, policy="priority", k=1).eval(), images(4)
    layer, kept = model.blocks[1].feed_forward, []
    from mixtura.hooks import tap

    with mx.record(model) as log, tap(lambda _, __, rows: kept.append(rows.index.token_N[: int(rows.counts_E.sum())])):
        model(x)
    routing = log["blocks.1.feed_forward"][0].routing
    assert layer.eval_capacity.rows(64, num_experts=4) == 4
    expected = []
    for expert in range(4):
        tokens = [t for t in range(64) if routing.expert_N[t] == expert]
        expected += sorted(tokens, key=lambda t: -routing.weight_N[t].item())[:4]
    assert kept[0].tolist() == expected


def test_recomputation_changes_no_gradient():
    plain = make_model(router="switch", router_options={}, k=1, losses={"load_balance": 0.1})
    again = ViT(plain.config, recompute_interval=1)
    again.load_state_dict(plain.state_dict())
    x = images()
    for model in (plain, again):
        model(x).square().sum().backward()
    for a, b in zip(plain.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_built_on_meta_and_filled_later_it_is_as_new():
    with torch.device("meta"):
        model = ViT(TINY)
    model.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(torch.nan)
    model.reset_parameters()
    assert model.eval()(images()).isfinite().all()
    assert model.position.std().item() == pytest.approx(0.5, rel=0.3)


def test_it_learns_which_texture_the_patches_have():
    model = ViT(dataclasses.replace(TINY, num_classes=4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(0)
    texture = torch.tensor([[1, 1, -1, -1], [1, -1, 1, -1], [1, -1, -1, 1], [-1, 1, 1, -1.0]]).view(4, 1, 2, 2)
    for _ in range(60):
        label = torch.randint(4, (32,), generator=generator)
        x = texture[label].repeat(1, 1, 4, 4) + 0.3 * torch.randn(32, 1, 8, 8, generator=generator)
        logits = model(x)
        nn.functional.cross_entropy(logits, label).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert (logits.argmax(1) == label).float().mean() > 0.9


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_classes": 1}, "expected num_classes of at least 2, got 1"),
        ({"moe_last": -1}, "expected moe_last of at least 0, got -1"),
        ({"heads": 5}, "expected heads that divide dim=12, got heads=5"),
    ],
)
def test_impossible_sizes(changed, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(TINY, **changed)


def test_images_of_another_shape_are_refused():
    with pytest.raises(UserError, match=r"expected images of shape \(B, 1, 8, 8\), got \(2, 3, 8, 8\)"):
        make_model()(torch.zeros(2, 3, 8, 8))
