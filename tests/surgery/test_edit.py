import pytest
import torch

import mixtura as mx
from mixtura.errors import UserError
from mixtura.surgery.edit import add_experts, close_experts, open_experts, remove_experts, split_experts
from mixtura.surgery.layers import stack_of
from mixtura.surgery.sites import dense_forward
from tests.surgery.layers import ROUTERS, build, by_hand


@pytest.mark.parametrize("router", ROUTERS)
@pytest.mark.parametrize("init", ["copy", "noise", "fresh"])
def test_added_experts_keep_the_function_until_they_are_opened(router, init):
    layer, x = build(router).eval(), torch.randn(50, 8)
    before = layer(x)
    assert add_experts(layer, 3, init=init) == {"": [4, 5, 6]}
    torch.testing.assert_close(layer(x), before, rtol=0, atol=1e-6)
    assert layer.experts.num_experts == layer.router.num_experts == 7
    open_experts(layer)
    assert not torch.allclose(layer(x), before, atol=1e-4) or (router, init) == ("random", "copy")


def test_copies_are_copies_of_what_was_asked_for():
    layer = build("topk")
    up, row = layer.experts.up_proj.detach().clone(), layer.router.weight.detach().clone()
    add_experts(layer, 2, source=[3, 1], closed=False)
    assert torch.equal(layer.experts.up_proj[4:], up[[3, 1]])
    assert torch.equal(layer.router.weight[4:], row[[3, 1]])
    noisy = build("topk")
    before = noisy.experts.up_proj.detach().clone()
    add_experts(noisy, 1, source=[2], init="noise", std=0.1)
    change = noisy.experts.up_proj[4] - before[2]
    assert change.std().item() == pytest.approx(0.1 * before[2].std().item(), rel=0.3)
    assert torch.equal(noisy.experts.up_proj[:4], before)


def test_removing_leaves_the_mixture_of_the_others():
    layer, x = build("topk"), torch.randn(20, 8)
    stack, weight = stack_of(layer.experts), layer.router.weight.detach().clone()
    remove_experts(layer, [1])
    stays = [0, 2, 3]
    logits = x @ weight[stays].T
    best = logits.topk(2)
    expected = torch.stack(
        [
            sum(
                w * dense_forward(stack, x[t : t + 1], expert=stays[e])[0]
                for w, e in zip(best.values[t].softmax(0), best.indices[t].tolist(), strict=True)
            )
            for t in range(20)
        ]
    )
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("by", ["units", "copies"])
@pytest.mark.parametrize("activation", ["relu", "swiglu"])
@pytest.mark.parametrize(
    "router", ["topk", "softmax_topk", "sigmoid", "raw_sigmoid", "noisy_topk", "null_experts", "dense"]
)
def test_splitting_keeps_the_function(router, activation, by):
    layer, x = build(router, activation=activation).eval(), torch.randn(30, 8)
    before, size = layer(x), sum(p.numel() for p in layer.experts.parameters())
    if router == "null_experts":
        with pytest.raises(UserError, match="only weights experts, got TopK"):
            split_experts(layer, 2, by=by)
        return
    split_experts(layer, 2, by=by)
    torch.testing.assert_close(layer(x), before, rtol=0, atol=2e-6)
    assert layer.router.k == (8 if router == "dense" else 4)
    assert layer.experts.hidden == (6 if by == "units" else 12)
    grown = sum(p.numel() for p in layer.experts.parameters())
    assert grown == (size + layer.experts.down_bias.numel() // 2 if by == "units" else 2 * size)


def test_closed_experts_get_no_tokens_and_no_gradient():
    layer, x = build("topk"), torch.randn(40, 8)
    close_experts(layer, {"": [0, 2]})
    with mx.record(layer) as log:
        layer(x).sum().backward()
    assert log[""][0].counts_E().tolist() == [0, 40, 0, 40]
    assert not layer.experts.up_proj.grad[[0, 2]].any()
    assert not layer.router.weight.grad[[0, 2]].any()
    open_experts(layer, [0])
    assert layer.router.offset.tolist() == [0, 0, -1e4, 0]
    open_experts(layer)
    assert layer.router.offset is None


def test_a_bias_opens_no_closed_expert():
    layer = build("sigmoid")
    layer.router.bias[0] = 100
    close_experts(layer, [0])
    assert 0 not in layer.router(torch.randn(9, 8)).expert_N


def test_edited_layers_train_save_and_load(tmp_path):
    layer, x = build("topk"), torch.randn(40, 8)
    add_experts(layer, 2, init="fresh")
    remove_experts(layer, [0])
    torch.save(layer.state_dict(), tmp_path / "layer.pt")
    other = build("topk", num_experts=5)
    other.router.offset = torch.zeros(5)
    other.load_state_dict(torch.load(tmp_path / "layer.pt", weights_only=True))
    assert torch.equal(other(x), layer(x))
    other(x).square().sum().backward()
    assert other.experts.up_proj.grad.shape[0] == 5


def test_router_state_of_every_kind_follows():
    layer = build("sigmoid")
    layer.router.bias.copy_(torch.arange(4.0))
    layer.router.pending_counts.copy_(torch.arange(4))
    remove_experts(layer, [1])
    assert layer.router.bias.tolist() == layer.router.pending_counts.tolist() == [0, 2, 3]
    assert "bias" in layer.router.state_dict()

    gate = torch.nn.Sequential(torch.nn.Linear(8, 6), torch.nn.Tanh(), torch.nn.Linear(6, 4))
    last = gate[-1].weight.detach().clone()
    router = mx.routers.TopK(8, 4, 2, gate=gate, noise="1/E")
    layer = mx.MoE(router=router, experts=build("topk").experts)
    remove_experts(layer, [3])
    assert torch.equal(gate[-1].weight, last[:3])
    assert router.noise == pytest.approx(1 / 3)
    assert layer(torch.randn(5, 8)).shape == (5, 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda layer: add_experts(layer, 0), "a count of at least 1, got 0"),
        (lambda layer: add_experts(layer, init="magic"), "init among copy, noise, fresh, got 'magic'"),
        (lambda layer: add_experts(layer, 2, source=[1]), "one source for each of 2 new experts, got 1"),
        (lambda layer: add_experts(layer, source=[4]), r"different experts from 0 to 3 of the layer, got \[4\]"),
        (lambda layer: remove_experts(layer, [1, 1]), r"different experts .* got \[1, 1\]"),
        (lambda layer: remove_experts(layer, [0, 1, 2]), "at least k=2 experts to stay, got 1"),
        (lambda layer: close_experts(layer, [0, 1, 2, 3]), "some experts to stay open"),
        (lambda layer: split_experts(layer, 5), "parts that divide the hidden width 12 of the layer, got 5"),
        (lambda layer: remove_experts(layer.router, [0]), "expected a model with mixtures .* got a TopK without"),
    ],
)
def test_what_cannot_be_is_refused_and_changes_nothing(change, message):
    layer = build("topk")
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    with pytest.raises(UserError, match=message):
        change(layer)
    assert all(torch.equal(tensor, before[name]) for name, tensor in layer.state_dict().items())


@pytest.mark.parametrize("router", ["hash", "hierarchical", "soft"])
def test_routers_without_rows_are_refused(router):
    options = {"vocab_size": 9} if router == "hash" else {}
    layer = mx.MoEConfig(dim=8, hidden=12, num_experts=4, router=router, router_options=options).build()
    with pytest.raises(UserError, match="expected a router among TopK"):
        remove_experts(layer, [0])
    with pytest.raises(UserError, match="tokens choose by its logits, got ExpertChoice"):
        close_experts(build("expert_choice"), [0])


def test_the_reference_by_hand_agrees_with_the_layer():
    layer, x = build("topk"), torch.randn(6, 8)
    torch.testing.assert_close(by_hand(layer, x), layer(x), rtol=0, atol=1e-6)
