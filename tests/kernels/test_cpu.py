"""What is particular to the plain torch kernel; test_compare.py compares it with the reference."""

import pytest
import torch

from mixtura.kernels import cpu
from mixtura.kernels import layout as layout_module
from mixtura.kernels.activations import ACTIVATIONS
from tests.kernels.cases import EVEN, NAMES, Operands, make_index


@pytest.mark.parametrize("activation", ["gelu", "swiglu"])
@pytest.mark.usefixtures("layout")
def test_gradcheck_in_float64(activation):
    index = make_index([[0, 2], [2, -1], [2, 0]], num_experts=3)
    operands = Operands.random(index, activation=activation, bias=True, dim=2, hidden=2).cast(torch.float64)
    operands.weight = operands.weight.detach().double().requires_grad_()
    leaves = operands.leaves()

    def run(*values):
        changed = Operands(**{**vars(operands), **dict(zip(leaves, values, strict=True))})
        return changed.run(cpu.grouped_mlp, index)

    torch.autograd.gradcheck(run, tuple(leaves.values()))


@pytest.mark.parametrize("wanted", NAMES)
@pytest.mark.usefixtures("layout")
def test_only_wanted_gradients_are_computed(wanted, monkeypatch):
    index = make_index(EVEN, num_experts=4)
    operands = Operands.random(index, activation="gelu", bias=True)
    for name in NAMES:
        getattr(operands, name).requires_grad_(name == wanted)
    y_ND = operands.run(cpu.grouped_mlp, index)
    calls = count_calls(monkeypatch)
    y_ND.sum().backward()
    assert calls == {
        "sum_to_tokens": int(wanted == "x"),
        "weight_grad": int(wanted in ("up", "down")),
        "bias_grad": int(wanted in ("up_bias", "down_bias")),
    }


def count_calls(monkeypatch):
    calls = dict.fromkeys(("sum_to_tokens", "weight_grad", "bias_grad"), 0)

    def counted(name, original):
        def spy(*args):
            calls[name] += 1
            return original(*args)

        return spy

    for name in calls:
        monkeypatch.setattr(layout_module.Layout, name, counted(name, getattr(layout_module.Layout, name)))
    return calls


PARTS = ("x", "weight", "up", "down", "up_bias", "down_bias")
# What the backward pass must compute for the gradient of one part alone: products, and the activation's derivative.
NEEDS = {"x": (2, 1), "weight": (1, 0), "up": (1, 1), "down": (0, 0), "up_bias": (1, 1), "down_bias": (0, 0)}


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("wanted", [{part} for part in PARTS] + [{"x", "weight"}, {"up", "down"}, {"weight", "down"}])
def test_of_frozen_parts_nothing_is_computed(wanted, dropout, monkeypatch):
    index = make_index(EVEN, num_experts=4)
    operands = Operands.random(index, activation="swiglu", bias=True, dropout=dropout)
    dy_ND = torch.randn(index.token_N.shape[0], operands.x.shape[1])
    expected = operands.results(cpu.grouped_mlp, index, dy_ND)
    for name, leaf in operands.leaves().items():
        leaf.requires_grad_(name in wanted)
    y_ND = operands.run(cpu.grouped_mlp, index)
    calls = {"products": 0, "derivatives": 0}
    product, activation = layout_module.Layout.product, ACTIVATIONS["swiglu"]

    def counted_product(*arguments, **options):
        calls["products"] += 1
        return product(*arguments, **options)

    def counted_derivative(*arguments):
        calls["derivatives"] += 1
        return activation.backward(*arguments)

    monkeypatch.setattr(layout_module.Layout, "product", counted_product)
    monkeypatch.setitem(ACTIVATIONS, "swiglu", activation._replace(backward=counted_derivative))
    leaves = [operands.leaves()[name] for name in sorted(wanted)]
    for name, grad in zip(sorted(wanted), torch.autograd.grad(y_ND, leaves, dy_ND), strict=True):
        torch.testing.assert_close(grad, expected[name])
    most = tuple(max(NEEDS[part][i] for part in wanted) for i in (0, 1))
    assert (calls["products"], calls["derivatives"]) == most
