import copy

import pytest
import torch
from torch import nn

import mixtura as mx
from mixtura.errors import UserError
from mixtura.models.gpt import GPT, GPTConfig
from mixtura.surgery.fuse import aim_routers, average_states, fuse, greedy_soup
from tests.surgery.layers import build

IDS = torch.arange(24).view(2, 12) % 31


def gpts(count, **options):
    sizes = {"vocab_size": 31, "context": 16, "dim": 16, "layers": 2, "heads": 2, "hidden": 8}
    models = []
    for seed in range(count):
        torch.manual_seed(seed)
        models.append(GPT(GPTConfig(**(sizes | {"num_experts": 0} | options))).eval())
    return models


def test_the_average_is_weighted_and_changes_no_model():
    models = gpts(2)
    before = [copy.deepcopy(model.state_dict()) for model in models]
    fused = fuse(models, method="average", weights=[3, 1])
    for name, tensor in fused.state_dict().items():
        torch.testing.assert_close(tensor, 0.75 * before[0][name] + 0.25 * before[1][name])
    for model, state in zip(models, before, strict=True):
        assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert fused.head.weight is fused.embedding.weight


def test_mixing_makes_experts_of_the_mlps_and_averages_the_rest():
    models = gpts(3)
    fused = fuse(models, k=2)
    layer = fused.blocks[1].feed_forward
    for e, model in enumerate(models):
        assert torch.equal(layer.experts.down_proj[e], model.blocks[1].feed_forward.down_proj.weight)
    mean = torch.stack([model.blocks[0].attention.qkv.weight for model in models]).mean(0)
    torch.testing.assert_close(fused.blocks[0].attention.qkv.weight, mean)
    twin = gpts(1, num_experts=3, k=2, router="topk")[0]
    twin.load_state_dict(fused.state_dict())
    torch.testing.assert_close(twin(IDS), fused(IDS), rtol=0, atol=0)


def test_copies_of_one_model_are_that_model():
    (model,) = gpts(1)
    expected = model(IDS)
    for method in ("average", "mix"):
        found = fuse([model] * 4, method=method)(IDS)
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)


def test_mixtures_join_their_experts_and_rows():
    a, b = build("topk"), build("topk")
    fused = fuse([nn.Sequential(a), nn.Sequential(b)])[0]
    assert torch.equal(fused.experts.up_proj, torch.cat([a.experts.up_proj, b.experts.up_proj]))
    assert torch.equal(fused.router.weight, torch.cat([a.router.weight, b.router.weight]))
    assert (fused.router.num_experts, fused.router.k) == (8, 2)
    assert fused(torch.randn(3, 8)).shape == (3, 8)


def test_counts_and_tables_are_the_first_models():
    states = [{"w": torch.ones(2) * n, "step": torch.tensor(n)} for n in (1, 3)]
    assert average_states(states)["step"].item() == 1
    assert average_states(states)["w"].tolist() == [2, 2]


def test_a_soup_takes_what_helps():
    states = [{"w": torch.tensor([v, 0.0])} for v in (4.0, 1.0, -3.0, -0.5)]
    soup, chosen = greedy_soup(states, lambda state: state["w"].norm().item())
    # -0.5 alone: 0.5; with 1: 0.25; with -3 too: worse; with 4 too: worse
    assert chosen == [3, 1]
    assert soup["w"].tolist() == [0.25, 0.0]


@pytest.mark.parametrize(
    ("models", "options", "message"),
    [
        (lambda: gpts(1), {}, "at least two models, got 1"),
        (lambda: gpts(2), {"method": "stir"}, "a method among average, mix, got 'stir'"),
        (lambda: gpts(2), {"method": "average", "weights": [1]}, r"for each of 2 models, got \[1\.0\]"),
        (lambda: gpts(2), {"method": "average", "weights": [1, -1]}, "a weight of at least 0"),
        (lambda: [*gpts(1), *gpts(1, hidden=4)], {}, r"got number 1 with another blocks\.0\.feed_forward\.down_proj"),
        (lambda: [nn.Linear(2, 2), nn.Linear(2, 2)], {}, r"expected MLPs that match '\*', or mixtures, got neither"),
        (lambda: [build("null_experts"), build("null_experts")], {}, "whose routers have a matrix, got others"),
    ],
)
def test_what_cannot_be_is_refused(models, options, message):
    with pytest.raises(UserError, match=message):
        fuse(models(), **options)


def test_a_fused_mixture_trains():
    fused = fuse(gpts(2)).train()
    with mx.record(fused) as log:
        nn.functional.cross_entropy(fused(IDS).flatten(0, 1), IDS.flatten()).backward()
    assert fused.blocks[0].feed_forward.router.weight.grad.any()
    assert log["blocks.0.feed_forward"][0].counts_E().sum() == 2 * 24


def test_routers_are_aimed_at_the_mean_of_what_each_expert_was_given():
    layer = build("topk", num_experts=3)
    a, b, c = (torch.randn(8) + 0.1 * torch.randn(2, 20, 8) for _ in range(3))
    aim_routers(nn.Sequential(layer), [[a[0], a[1]], [b], [c.flatten(0, 1)]], strength=2.0)
    rows = torch.stack([part.flatten(0, 1).mean(0) for part in (a, b, c)])
    rows = rows - rows.mean(0)
    logits = torch.cat([part.flatten(0, 1) for part in (a, b, c)]) @ rows.T
    torch.testing.assert_close(layer.router.weight, 2 * rows / logits.std(), rtol=1e-4, atol=1e-5)
    for number, part in enumerate((a, b, c)):
        assert (layer.router(part.flatten(0, 1)).first_choice_T() == number).float().mean() > 0.9


def test_aiming_needs_data_for_each_expert():
    with pytest.raises(UserError, match="got 2 sets for the layer with TopK"):
        aim_routers(build("topk"), [[torch.randn(3, 8)]] * 2)
    with pytest.raises(UserError, match="router with a matrix, got 4 sets for the layer with"):
        aim_routers(build("null_experts"), [[torch.randn(3, 8)]] * 4)
