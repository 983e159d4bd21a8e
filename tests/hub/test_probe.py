"""Probes: what they keep, and when they complain."""

import pytest
import torch
from torch import nn

from mixtura.errors import UserError
from mixtura.hub import probe


def table(vocab: int = 100) -> nn.Embedding:
    return nn.Embedding(vocab, vocab)


def test_it_is_kept_and_met(tmp_path):
    model = table()
    found = probe.take(model, vocab_size=100, context=8)
    assert found.ids.shape == (4, 8)
    assert found.logits.shape == (4, 8, 64)
    assert torch.equal(found.logits, model(found.ids)[..., found.columns])
    found.write(tmp_path)
    assert probe.check(tmp_path, model, dtype=torch.float32) == 0
    again = probe.read(tmp_path)
    assert torch.equal(again.logits, found.logits)


@pytest.mark.parametrize("value", [1e-2, torch.nan, torch.inf])
def test_another_value_is_refused(tmp_path, value):
    model = table()
    probe.take(model, vocab_size=100, context=8).write(tmp_path)
    with torch.no_grad():
        model.weight += value
    with pytest.raises(
        UserError,
        match=r"expected the logits and tensors that '.*mixtura_probe\.json' tells of, got others .* somewhere",
    ):
        probe.check(tmp_path, model, dtype=torch.float32)


def test_rounding_is_allowed_by_dtype(tmp_path):
    model = table()
    probe.take(model, vocab_size=100, context=8).write(tmp_path)
    rounded = table()
    rounded.load_state_dict(model.state_dict())
    rounded.bfloat16()
    assert probe.check(tmp_path, rounded, dtype=torch.bfloat16) > 1e-4
    with pytest.raises(UserError):
        probe.check(tmp_path, rounded, dtype=torch.float32)


def test_a_tensors_number_sees_what_changes_places():
    x = torch.randn(3, 8, 8)
    same = probe.weigh(x)
    assert probe.weigh(x.clone().bfloat16().float()) == pytest.approx(same, abs=0.1)
    changes = {
        "transposed": x.mT,
        "experts": x[[0, 2, 1]],
        "halves": x.roll(4, dims=1),
        "rows": x[:, [1, 0, *range(2, 8)]],
        "columns": x.flip(2),
        "one expert's halves": torch.cat([x[:2], x[2:].roll(4, dims=1)]),
        "sign": -x,
    }
    for name, changed in changes.items():
        assert abs(probe.weigh(changed) - same) > 1e-2 * x.norm(), name


def test_the_odd_tensor_is_named(tmp_path):
    model = table()
    probe.take(model, vocab_size=100, context=8, tensors=dict(model.named_parameters())).write(tmp_path)
    assert probe.check(tmp_path, model, dtype=torch.float32, tensors=dict(model.named_parameters())) == 0
    with torch.no_grad():
        model.weight[[0, 1]] = model.weight[[1, 0]]
    with pytest.raises(UserError, match="in weight: it is swapped"):
        probe.check(tmp_path, model, dtype=torch.float32, tensors=dict(model.named_parameters()))
