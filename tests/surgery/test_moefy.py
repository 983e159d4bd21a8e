import pytest
import torch
from torch import nn

import mixtura as mx
from mixtura.errors import UserError
from mixtura.models.gpt import GPT, GPTConfig
from mixtura.surgery.initial import Drop, Noise, Split
from mixtura.surgery.moefy import moefy

IDS = torch.arange(40).view(2, 20) % 31


def dense_gpt(**options):
    sizes = {"vocab_size": 31, "context": 32, "dim": 16, "layers": 4, "heads": 2, "hidden": 24}
    return GPT(GPTConfig(**(sizes | {"num_experts": 0} | options))).eval()


def torch_encoder(**options):
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, **options)
    return nn.TransformerEncoder(layer, num_layers=2, enable_nested_tensor=not options["norm_first"]).eval()


EQUAL = {
    "upcycle": {},
    "upcycle of one choice, by its probability": {
        "k": 1, "router": "topk", "router_options": {"order": "softmax_topk", "renormalize": True}
    },
    "upcycle, sigmoid": {"router": "sigmoid_bias", "router_options": {"scale": 2.5}},
    "upcycle, every expert": {"router": "dense", "k": 4},
    "split": {"init": "split"},
    "split in four": {"init": Split(parts=4), "k": 4, "num_experts": 8},
    "split, all chosen": {"init": "split", "k": 4},
    "drop nothing": {"init": Drop(ratio=0.0)},
    "no noise": {"init": Noise(std=0.0)},
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:with k=1 a weight")
@pytest.mark.parametrize("activation", ["gelu", "swiglu"])
@pytest.mark.parametrize("options", EQUAL.values(), ids=EQUAL)
def test_a_gpt_is_equal_at_step_0(options, activation):
    model = dense_gpt(activation=activation)
    expected = model(IDS)
    moefy(model, "*.feed_forward", **({"num_experts": 4, "k": 2} | options))
    assert sum(isinstance(module, mx.MoE) for module in model.modules()) == 4
    torch.testing.assert_close(model(IDS), expected, rtol=0, atol=2e-6)


def test_the_keys_are_those_of_a_gpt_built_sparse():
    model = moefy(dense_gpt(), num_experts=4, k=2)
    sparse = dense_gpt(num_experts=4, k=2, router="topk")
    assert model.state_dict().keys() == sparse.state_dict().keys()
    sparse.load_state_dict(model.state_dict())
    torch.testing.assert_close(sparse(IDS), model(IDS), rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_torchs_transformer_is_equal_in_evaluation_with_and_without_its_fast_path(norm_first, activation):
    model = torch_encoder(activation=activation, norm_first=norm_first)
    x, padding = torch.randn(3, 7, 16), torch.arange(7).expand(3, 7) >= torch.tensor([[7], [5], [2]])
    with torch.no_grad():
        expected = model(x, src_key_padding_mask=padding)
        moefy(model, "layers.*", num_experts=4, k=2)
        assert isinstance(model.layers[1].linear1, mx.MoE)
        assert model.layers[0].linear1.experts.dropout == pytest.approx(0.1)
        found = model(x, src_key_padding_mask=padding)
    torch.testing.assert_close(found[~padding], expected[~padding], rtol=0, atol=1e-5)
    model.train()
    model(x).sum().backward()
    assert model.layers[0].linear1.experts.up_proj.grad.abs().sum() > 0


def test_a_decoder_layer_and_one_that_runs_in_bfloat16():
    layer = nn.TransformerDecoderLayer(16, 2, 32, dropout=0.0)
    x, memory = torch.randn(5, 2, 16), torch.randn(4, 2, 16)
    expected = layer(x, memory)
    moefy(layer, num_experts=3, k=2)
    torch.testing.assert_close(layer(x, memory), expected, rtol=0, atol=2e-6)

    half = nn.Sequential(nn.Linear(16, 32), nn.SiLU(), nn.Linear(32, 16)).bfloat16()
    x = torch.randn(9, 16, dtype=torch.bfloat16)
    expected, sparse = half(x), moefy(half, num_experts=4, k=2)
    assert sparse.experts.up_proj.dtype == torch.bfloat16
    assert sparse.experts.activation == "silu"
    torch.testing.assert_close(sparse(x), expected, rtol=0, atol=0.02)


def test_every_and_last_choose_among_the_blocks():
    def places(**options):
        blocks = moefy(dense_gpt(), num_experts=2, **options).blocks
        return [number for number, block in enumerate(blocks) if isinstance(block.feed_forward, mx.MoE)]

    assert places(every=2) == [1, 3]
    assert places(last=1) == [3]
    assert places(every=2, last=1) == [3]
    assert places(match="blocks.[02].*") == [0, 2]


def test_a_shared_mlp_stays_shared():
    mlp = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))
    model = nn.ModuleList([mlp, mlp])
    moefy(model, num_experts=2)
    assert model[0] is model[1]
    assert isinstance(model[1], mx.MoE)


def test_weights_that_differ_from_token_to_token_are_announced():
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))
    x = torch.randn(500, 8)
    expected = model(x)
    with pytest.warns(UserWarning, match=r"weights of Switch add up to 0\.\d+ for one token and to 0\.\d+ for another"):
        layer = moefy(model, num_experts=4, k=1, router="switch")
    found = layer.eval()(x)
    assert (found - expected).norm() < 0.2 * expected.norm()


def test_copies_are_independent_parameters():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))
    before = model[0].weight.detach().clone()
    layer = moefy(model, num_experts=2, k=1, router_options={"order": "softmax_topk"}, init="random")
    with torch.no_grad():
        layer.experts.up_proj.zero_()
    torch.testing.assert_close(model[0].weight, before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"match": "*.mlp"}, r"expected MLPs that match '\*\.mlp', .* there are: blocks\.0\.feed_forward, blocks\.1"),
        ({"every": 5}, "and 5 of them at least, got 4"),
        ({"every": 0}, "expected every and last of at least 1, got every=0"),
        ({"init": "magic"}, "expected init among upcycle, drop, noise, split, random, cluster, .*'magic'"),
        ({"init": Split(parts=3)}, "expected parts that divide the hidden width 24, num_experts=4 and k=2, got 3"),
        ({"init": "cluster"}, 'expected data= with init="cluster"'),
        ({"router": "soft", "k": None}, "expected a router that only weights experts, got Soft"),
        ({"router": "switch"}, "expected k=1 with router='switch', got k=2"),
    ],
)
def test_what_cannot_be_is_refused(change, message):
    with pytest.raises(UserError, match=message):
        moefy(dense_gpt(), **({"num_experts": 4} | change))
