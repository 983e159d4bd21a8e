import pytest
import torch
from torch import nn

import mixtura as mx
from mixtura.errors import UserError
from mixtura.surgery.sites import dense_forward, find_mlps


class Gated(nn.Module):
    """The shape of Llama's MLP."""

    def __init__(self, act=None, *, scale=1.0, bias=(False, False, True)):
        super().__init__()
        self.gate_proj, self.up_proj = (nn.Linear(6, 10, bias=b) for b in bias[:2])
        self.down_proj = nn.Linear(10, 6, bias=bias[2])
        self.act_fn, self.scale = act or nn.SiLU(), scale

    def forward(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x)) * self.scale


class Fused(nn.Module):
    """The shape of Phi-3's MLP."""

    def __init__(self):
        super().__init__()
        self.gate_up_proj, self.down_proj = nn.Linear(6, 20, bias=False), nn.Linear(10, 6, bias=False)

    def forward(self, x):
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        return self.down_proj(nn.functional.silu(gate) * up)


class Bert(nn.Module):
    """The shape of BERT's layer, without its attention."""

    def __init__(self):
        super().__init__()
        self.intermediate, self.output = nn.Module(), nn.Module()
        self.intermediate.dense, self.output.dense = nn.Linear(6, 10), nn.Linear(10, 6)
        self.intermediate.forward = lambda x: nn.functional.gelu(self.intermediate.dense(x))
        self.norm = nn.LayerNorm(6)

    def forward(self, x):
        return self.norm(x + self.output.dense(self.intermediate(x)))


MODULES = {
    "gated": (Gated, "swiglu", "", ()),
    "gated by gelu": (lambda: Gated(nn.GELU()), "geglu", "", ()),
    "fused": (Fused, "swiglu", "", ()),
    "bert": (Bert, "gelu", "intermediate", ("output.dense",)),
    "ours": (lambda: mx.MLP(dim=6, hidden=10, activation="clamped_swiglu"), "clamped_swiglu", "", ()),
    "sequential": (lambda: nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 6)), "relu", "", ()),
    "torch": (
        lambda: nn.TransformerEncoderLayer(6, 2, 10, activation="gelu", batch_first=True),
        "gelu",
        "linear1",
        ("linear2", "dropout", "activation"),
    ),
}


@pytest.mark.parametrize(("make", "activation", "entry", "silenced"), MODULES.values(), ids=MODULES)
def test_an_mlp_is_found_with_its_activation_and_its_mixture_takes_its_place(make, activation, entry, silenced):
    model = nn.ModuleDict({"block": make().eval()})
    x = torch.randn(3, 5, 6)
    expected = model["block"](x)
    (site,) = find_mlps(model)
    assert (site.name, site.mlp.activation, site.dim, site.hidden) == ("block", activation, 6, 10)
    assert site.entry == ".".join(filter(None, ("block", entry)))
    assert site.silenced == tuple(f"block.{name}" for name in silenced)
    mx.moefy(model, num_experts=3, k=2)
    torch.testing.assert_close(model["block"](x), expected, rtol=0, atol=2e-6)


def test_the_weights_are_those_of_the_module():
    module, x = Gated(bias=(True, False, True)).double(), torch.randn(4, 6, dtype=torch.float64)
    torch.testing.assert_close(dense_forward(find_mlps(module)[0].mlp, x), module(x))


def test_what_only_looks_like_an_mlp_is_refused():
    with pytest.raises(
        UserError, match=r"swiglu, geglu, geglu_tanh, clamped_swiglu in 'a', got a Gated that computes something"
    ):
        find_mlps(nn.ModuleDict({"a": Gated(scale=0.5)}))
    with pytest.raises(UserError, match="something else; leave it out by match="):
        find_mlps(Gated(nn.Tanh()))
    wrong = Fused()
    wrong.gate_up_proj = nn.Linear(6, 15)
    with pytest.raises(UserError, match=r"expected matrices of one MLP in '', got \[\(15, 6\), \(6, 10\)\]"):
        find_mlps(wrong)


def test_other_modules_are_no_mlps():
    model = nn.Sequential(
        nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)),
        nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4)),
        nn.Sequential(nn.Linear(4, 4)),
        nn.Sequential(nn.Linear(4, 8), nn.GLU(), nn.Linear(4, 4)),
        mx.MoEConfig(dim=4, hidden=8, num_experts=2, shared_hidden=8).build(),
    )
    assert find_mlps(model) == []


def test_dropout_must_be_told_where_its_place_is_not_known():
    mlp = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 4))
    with pytest.raises(UserError, match="dropout= for the hidden units of '0', which has dropout"):
        find_mlps(nn.Sequential(mlp))
    assert find_mlps(mlp, dropout=0.2)[0].dropout == 0.2
    assert find_mlps(nn.TransformerEncoderLayer(4, 1, 8, dropout=0.3))[0].dropout == 0.3
    assert mlp[2].training
