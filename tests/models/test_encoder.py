import pytest
import torch

from mixtura.errors import UserError
from mixtura.models.encoder import Encoder, EncoderConfig

SIZES = EncoderConfig(dim=16, heads=2, hidden=16, layers=2, num_experts=4, k=2, router="topk", context=8, num_classes=3)


def encoder(config=SIZES, **options):
    torch.manual_seed(0)
    model = Encoder(config, **options)
    torch.nn.init.normal_(model.head.weight)
    return model


def test_padding_changes_nothing():
    model = encoder().eval()
    ids_BL = torch.tensor([[5, 6, 7, 0, 0], [1, 2, 3, 4, 5]])
    mask_BL = torch.tensor([[True] * 3 + [False] * 2, [True] * 5])
    padded = model(ids_BL, mask_BL=mask_BL)
    torch.testing.assert_close(padded[:1], model(ids_BL[:1, :3]))
    torch.testing.assert_close(padded[1:], model(ids_BL[1:]))
    other = ids_BL.masked_fill(~mask_BL, 99)
    torch.testing.assert_close(model(other, mask_BL=mask_BL), padded)


def test_every_token_and_its_place_matter():
    model = encoder().eval()
    ids_BL = torch.tensor([[1, 2, 3, 4]])
    for changed in ([[9, 2, 3, 4]], [[1, 2, 3, 9]], [[2, 1, 3, 4]]):
        assert not torch.allclose(model(torch.tensor(changed)), model(ids_BL))


def test_gradients_reach_every_expert_and_recomputation_changes_none():
    ids_BL = torch.arange(48).view(6, 8)
    gradients = []
    for interval in (0, 1):
        model = encoder(recompute_interval=interval)
        model(ids_BL).square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
        experts = next(model.blocks[1].feed_forward.experts.parameters()).grad
        assert (experts.flatten(1).abs().sum(1) > 0).all()
    for kept, again in zip(*gradients, strict=True):
        torch.testing.assert_close(again, kept)


def test_texts_that_are_too_long_are_refused():
    with pytest.raises(UserError, match="at most 8 tokens, got 9"):
        encoder()(torch.zeros(1, 9, dtype=torch.int64))


@pytest.mark.parametrize("change", [{"num_classes": 1}, {"vocab_size": 0}, {"context": 0}])
def test_sizes_that_cannot_be_are_refused(change):
    with pytest.raises(UserError, match=f"expected {next(iter(change))} of at least"):
        EncoderConfig(**change)


def test_a_model_can_be_set_afresh():
    with torch.device("meta"):
        model = Encoder(SIZES)
    model = model.to_empty(device="cpu")
    model.reset_parameters()
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert model(torch.zeros(1, 2, dtype=torch.int64)).abs().max() == 0  # the head starts at zero
