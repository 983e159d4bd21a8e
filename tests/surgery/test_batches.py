import pytest
import torch
from torch import nn

from mixtura.errors import UserError
from mixtura.surgery.batches import call, evaluating, inputs_of, watch
from tests.surgery.layers import build


def test_batches_of_every_kind():
    bilinear, a, b = nn.Bilinear(2, 2, 1), torch.randn(3, 2), torch.randn(3, 2)
    expected = bilinear(a, b)
    assert torch.equal(call(bilinear, (a, b)), expected)
    assert torch.equal(call(bilinear, [a, b]), expected)
    assert torch.equal(call(bilinear, {"input1": a, "input2": b}), expected)


def test_inputs_are_those_in_evaluation_up_to_a_number_of_tokens():
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(3, 3), nn.ReLU())
    first, second = torch.randn(2, 4, 3), torch.randn(2, 4, 3)
    found = inputs_of(model, ["1", "2"], [first, second], max_tokens=10)
    expected = torch.cat([first, second]).flatten(0, 1)[:10]
    assert torch.equal(found["1"], expected)
    assert torch.equal(found["2"], model[1](expected).detach())
    assert model.training
    assert not model[1]._forward_pre_hooks


def test_modes_come_back_one_by_one():
    model = nn.Sequential(nn.Dropout(), nn.Dropout().eval())
    with evaluating(model):
        assert not model[0].training
        assert not torch.is_grad_enabled()
    assert model[0].training
    assert not model[1].training


def test_every_mixture_is_watched():
    model = nn.Sequential(build("topk"), build("dense"))
    seen = []
    watch(model, [torch.randn(3, 8)] * 2, lambda layer, routing, rows: seen.append((layer, rows.counts_E.sum().item())))
    assert seen == [(model[0], 6), (model[1], 12)] * 2
    with pytest.raises(UserError, match="a batch that reaches a mixture, got none"):
        watch(nn.Linear(8, 8), [torch.randn(3, 8)], lambda *_: None)
