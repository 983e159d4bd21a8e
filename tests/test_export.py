"""torch.export: a saved program, read again, gives the model's numbers for other tokens and other numbers of tokens."""

import io

import pytest
import torch
from torch.export import Dim

import mixtura as mx
from mixtura.models.gpt import GPT, GPTConfig

LAYERS = {
    "dropless": {},
    "drop": {"capacity_factor": 1.0},
    "priority": {"capacity_factor": 1.0, "policy": "priority", "router": "sigmoid_bias"},
    "highest": {"pooling": "highest", "shared_hidden": 5, "shared_gate": "softmax"},
}


def reload(model, *inputs, strict, dynamic):
    """Export in evaluation, save, load."""
    program = torch.export.export(model.eval(), inputs, dynamic_shapes=dynamic, strict=strict)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    return torch.export.load(file).module()


@pytest.mark.parametrize(
    ("name", "strict"), [("dropless", False), ("drop", True), ("priority", False), ("highest", True)]
)
def test_a_layer(name, strict):
    layer = mx.MoEConfig(dim=8, hidden=16, num_experts=4, k=2, **LAYERS[name]).build()
    loaded = reload(layer, torch.randn(3, 7, 8), strict=strict, dynamic=({0: Dim("B", min=1, max=64)},))
    for batch in (3, 1, 5):
        x = torch.randn(batch, 7, 8)
        torch.testing.assert_close(loaded(x), layer(x))


@pytest.mark.parametrize("strict", [True, False], ids=["strict", "non-strict"])
def test_a_language_model(strict):
    model = GPT(GPTConfig(vocab_size=31, context=16, dim=16, heads=2, hidden=16, num_experts=4))
    dynamic = ({0: Dim("B", min=1, max=64), 1: Dim("L", min=2, max=16)},)
    loaded = reload(model, torch.randint(31, (3, 9)), strict=strict, dynamic=dynamic)
    for shape in ((3, 9), (5, 14)):
        ids = torch.randint(31, shape)
        torch.testing.assert_close(loaded(ids), model(ids))


def test_an_exported_layer_can_still_be_differentiated():
    layer = mx.MoEConfig(dim=8, hidden=16, num_experts=4, k=2).build().eval()
    x = torch.randn(7, 8, requires_grad=True)
    program = torch.export.export(layer, (torch.randn(7, 8),), strict=False).module()
    (got,) = torch.autograd.grad(program(x).square().sum(), x)
    torch.testing.assert_close(got, torch.autograd.grad(layer(x).square().sum(), x)[0])
