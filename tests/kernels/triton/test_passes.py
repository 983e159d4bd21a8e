"""The order of launches, what is left out, and the forms of tiles that small shapes do not meet by themselves."""

import pytest
import torch

from mixtura.kernels import triton
from mixtura.kernels.activations import StackedMLP
from mixtura.kernels.ops import Wanted
from mixtura.kernels.rows import RowIndex
from mixtura.kernels.triton import passes
from mixtura.kernels.triton.configs import Config, Tiles
from tests.kernels.cases import Operands, compare, make_index

NOTHING = Wanted(x=False, weight=False, up=False, down=False, up_bias=False, down_bias=False)


def names(wanted):
    """The launches of both passes, on tensors without memory."""

    def meta(*shape, dtype=torch.float32):
        return torch.empty(shape, dtype=dtype, device="meta")

    index = RowIndex(meta(8, dtype=torch.int64), meta(2, dtype=torch.int64), meta(4, 2, dtype=torch.int64), 4, True)
    experts = StackedMLP(meta(2, 6, 5), meta(2, 5, 3), meta(2, 6), meta(2, 5), "swiglu")
    found = []
    values = {"experts": experts, "keep_NF": None, "start": found.append}
    y_ND, z = passes.forward(meta(4, 5), meta(8), index, keep_z=True, **values)
    forward = [launch.name for launch in found]
    gradients = passes.backward(y_ND, meta(4, 5), meta(8), index=index, z=z, wanted=wanted, **values)
    assert [gradient is not None for gradient in gradients] == list(wanted)
    return forward, [launch.name for launch in found[len(forward) :]]


def test_the_forward_pass_is_three_kernels():
    assert names(NOTHING)[0] == ["schedule", "up", "down"]


@pytest.mark.parametrize(
    ("wanted", "expected"),
    {
        "weight": [],
        "x": ["dx rows", "combine"],
        "up": ["dw up"],
        "down": ["dw down"],
        "up_bias": ["bias sums"],
        "down_bias": ["bias sums"],
    }.items(),
)
def test_what_is_not_wanted_is_not_computed(wanted, expected):
    assert names(NOTHING._replace(**{wanted: True}))[1] == ["schedule", "hidden", *expected]


FORMS = {
    "many columns, long sums": (Config(16, 16, 16, 4, 2), (32, 32), "gelu"),
    "many columns, odd": (Config(16, 16, 16, 4, 2), (17, 33), "swiglu"),
    "pieces": (Config(32, 32, 16, 4, 2, 2), (16, 64), "swiglu"),
    "pieces, odd": (Config(32, 32, 16, 4, 2, 2), (17, 39), "gelu"),
    "pieces of pieces": (Config(16, 64, 32, 4, 2, 4), (16, 64), "swiglu"),
}


@pytest.mark.parametrize(("config", "widths", "activation"), FORMS.values(), ids=list(FORMS))
@pytest.mark.usefixtures("poison")
def test_tiles_of_every_form_give_the_same(config, widths, activation, monkeypatch):
    entry = dict.fromkeys(("up", "up_gated", "rows", "hidden", "hidden_gated", "weights"), config)
    monkeypatch.setattr(passes, "choose", lambda dtype, **_: Tiles(config.block_m, entry))
    index = make_index([[0, 1]] * 16 + [[2, 0]], num_experts=4)  # more than a tile, one row, none
    dim, hidden = widths
    operands = Operands.random(index, activation=activation, bias=activation == "swiglu", dim=dim, hidden=hidden)
    compare(triton.grouped_mlp, operands, index)
