import pytest
import torch

from mixtura.errors import UserError
from mixtura.surgery.layers import stack_of
from mixtura.surgery.prune import prune, saliency
from mixtura.surgery.sites import dense_forward
from tests.surgery.layers import build


@pytest.fixture
def layer():
    return build("topk")


BATCHES = torch.randn(3, 20, 8, generator=torch.Generator().manual_seed(3))


def test_reap_is_the_mean_weighted_norm_over_an_experts_tokens(layer):
    stack, x = stack_of(layer.experts), BATCHES.flatten(0, 1)
    routing = layer.router(x)
    expected = []
    for e in range(4):
        mine = (routing.expert_N == e).nonzero().flatten()
        norms = dense_forward(stack, x[routing.token_N[mine]], expert=e).norm(dim=1) * routing.weight_N[mine]
        expected.append(norms.mean().item())
    found = saliency(layer, "reap", data=BATCHES)[""]
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-5, atol=1e-6)


def test_frequency_and_router_norm(layer):
    counts = torch.bincount(layer.router(BATCHES.flatten(0, 1)).expert_N, minlength=4)
    torch.testing.assert_close(saliency(layer, "frequency", data=BATCHES)[""], counts / counts.sum())
    torch.testing.assert_close(saliency(layer, "router_norm")[""], layer.router.weight.detach().norm(dim=1))
    torch.manual_seed(1)
    first = saliency(layer, "random")[""]
    torch.manual_seed(1)
    assert torch.equal(saliency(layer, "random")[""], first)


def test_an_expert_without_tokens_is_the_first_to_go(layer):
    with torch.no_grad():
        layer.router.weight[2] = 0  # beaten by two of the three others for nearly every token
        layer.router.weight[[0, 1, 3]] = 100 * torch.eye(8)[:3]
    x = BATCHES.abs()
    score = saliency(layer, "reap", data=x)[""]
    assert score[2] == 0
    assert prune(layer, 3, data=x) == {"": [0, 1, 3]}
    assert layer.experts.num_experts == 3


def test_pruning_keeps_the_best_of_each_layer_in_order():
    model = torch.nn.Sequential(build("topk"), build("topk"))
    weights = [layer.experts.down_proj.detach().clone() for layer in model]
    score = saliency(model, "reap", data=BATCHES)
    kept = prune(model, 0.5, data=BATCHES)
    for name, layer, weight in zip("01", model, weights, strict=True):
        assert kept[name] == sorted(score[name].topk(2).indices.tolist())
        assert torch.equal(layer.experts.down_proj, weight[kept[name]])
    assert torch.allclose(model[0].router(BATCHES[0]).weight_N.view(-1, 2).sum(1), torch.ones(20))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": 1}, "at least k=2 experts to stay, got 1"),
        ({"keep": 5}, "to keep a number of the 4 experts of the layer, got 5"),
        ({"keep": 2.5}, "got 2.5"),
        ({"keep": 0}, "got 0"),
        ({"by": "taste"}, "a measure among reap, frequency, router_norm, random, got 'taste'"),
        ({"data": None}, 'expected data= to measure "reap"'),
        ({"data": []}, "a batch that reaches a mixture, got none"),
    ],
)
def test_what_cannot_be_is_refused(layer, options, message):
    with pytest.raises(UserError, match=message):
        prune(layer, **({"data": BATCHES} | options))
