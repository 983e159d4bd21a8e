"""The translator: what padding and later tokens change, the cache, label smoothing against torch, refusals."""

import dataclasses

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812  # torch's own customary name

import mixtura as mx
from mixtura.errors import UserError
from mixtura.models.translator import Translator, TranslatorConfig, smoothed_cross_entropy

TINY = TranslatorConfig(vocab_size=13, context=12, dim=16, layers=2, heads=2, hidden=24, num_experts=4, moe_every=2)


def make_model(**options) -> Translator:
    model = Translator(dataclasses.replace(TINY, **options))
    for block in (*model.encoder, *model.decoder):  # attention starts as nothing, which would hide its part
        nn.init.normal_(block.attention.out.weight, std=0.3)
    nn.init.normal_(model.embedding.weight, std=0.5)
    return model


def tokens(*shape) -> torch.Tensor:
    return torch.randint(0, TINY.vocab_size, shape)


mixtures = pytest.mark.parametrize(
    "options", [{}, {"router": "topk", "k": 2}, {"num_experts": 0}], ids=["switch", "topk", "dense"]
)


@mixtures
def test_later_tokens_change_nothing_before_them_and_the_source_changes_all(options):
    model, source, ids = make_model(**options).eval(), tokens(3, 7), tokens(3, 9)
    before = model(source, ids)
    changed = ids.clone()
    changed[:, 5:] = (changed[:, 5:] + 1) % TINY.vocab_size
    after = model(source, changed)
    torch.testing.assert_close(after[:, :5], before[:, :5], rtol=1e-5, atol=1e-5)
    assert (after[:, 5] - before[:, 5]).abs().max() > 1e-3
    source[:, -1] = (source[:, -1] + 1) % TINY.vocab_size
    assert ((model(source, ids) - before).abs().amax(2) > 1e-5).all()


@mixtures
def test_padding_changes_nothing_and_goes_to_no_expert(options):
    model, source, ids = make_model(**options).eval(), tokens(2, 8), tokens(2, 6)
    source_mask, mask = torch.ones(2, 8).bool(), torch.ones(2, 6).bool()
    source_mask[1, 5:], mask[1, 4:] = False, False
    with mx.record(model) as log:
        both = model(source, ids, source_mask_BS=source_mask, mask_BL=mask)
    alone = model(source[1:, :5], ids[1:, :4])
    torch.testing.assert_close(both[1:, :4], alone, rtol=1e-5, atol=1e-5)
    if options.get("num_experts", 4):
        k = options.get("k", 1)
        counts = {name: int(records[0].counts_E().sum()) for name, records in log.items()}
        assert counts == {"encoder.1.feed_forward": 13 * k, "decoder.1.feed_forward": 10 * k}
    else:
        assert not log


@mixtures
def test_token_by_token_with_a_cache_is_the_same_as_all_at_once(options):
    model, source, ids = make_model(**options).eval(), tokens(3, 7), tokens(3, 9)
    mask = torch.arange(7) < torch.tensor([[7], [4], [2]])
    memory, cache = model.encode(source, mask_BS=mask), model.new_cache(3)
    steps = [model.decode(ids[:, at : at + 1], memory, cache=cache) for at in range(9)]
    whole = model(source, ids, source_mask_BS=mask)
    torch.testing.assert_close(model.head(torch.cat(steps, dim=1)), whole, rtol=1e-4, atol=1e-5)


def test_several_hypotheses_share_their_source():
    model, source, ids = make_model().eval(), tokens(2, 7), tokens(6, 5)
    memory, cache = model.encode(source), model.new_cache(6)
    steps = [model.decode(ids[:, at : at + 1], memory, cache=cache) for at in range(5)]
    apart = model(source.repeat_interleave(3, dim=0), ids)
    torch.testing.assert_close(model.head(torch.cat(steps, dim=1)), apart, rtol=1e-4, atol=1e-5)


def test_rows_of_a_cache_go_on_from_one_another():
    model, source, ids = make_model().eval(), tokens(1, 4), tokens(3, 5)
    memory, cache = model.encode(source), model.new_cache(3)
    for at in range(4):
        model.decode(ids[:, at : at + 1], memory, cache=cache)
    order = torch.tensor([2, 2, 0])
    cache.take(order)
    last = model.head(model.decode(ids[:, 4:], memory, cache=cache))[:, 0]
    expected = model(source.expand(3, -1), torch.cat([ids[order, :4], ids[:, 4:]], dim=1))[:, -1]
    torch.testing.assert_close(last, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.6])
def test_label_smoothing_is_that_of_torch_with_its_gradients(smoothing):
    torch.manual_seed(0)
    head, x, targets = nn.Linear(8, 11, bias=False), torch.randn(7, 8, requires_grad=True), torch.randint(0, 11, (7,))
    expected = F.cross_entropy(head(x), targets, label_smoothing=smoothing)
    wanted = torch.autograd.grad(expected, [x, head.weight])
    loss, nats = smoothed_cross_entropy(x, head, targets, smoothing=smoothing)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(nats, F.cross_entropy(head(x), targets).detach())
    for gradient, other in zip(torch.autograd.grad(loss, [x, head.weight]), wanted, strict=True):
        torch.testing.assert_close(gradient, other)


def test_the_loss_is_the_mean_over_real_tokens():
    model, source, ids, targets = make_model().eval(), tokens(2, 6), tokens(2, 5), tokens(2, 5)
    mask = torch.arange(5) < torch.tensor([[5], [2]])
    loss, nats = model(source, ids, mask_BL=mask, targets_BL=targets, smoothing=0.2)
    logits = model(source, ids, mask_BL=mask)[mask]
    torch.testing.assert_close(loss, F.cross_entropy(logits, targets[mask], label_smoothing=0.2))
    torch.testing.assert_close(nats, F.cross_entropy(logits, targets[mask]).detach())


def test_every_weight_learns():
    model = make_model(moe_every=1)
    loss, _ = model(tokens(8, 9), tokens(8, 9), targets_BL=tokens(8, 9), smoothing=0.1)
    loss.backward()
    still = [name for name, parameter in model.named_parameters() if not parameter.grad.abs().sum() > 0]
    assert not still


def test_it_is_built_again_after_to_empty():
    with torch.device("meta"):
        model = Translator(TINY)
    model.to_empty(device="cpu")
    model.reset_parameters()
    assert model.head.weight is model.embedding.weight
    assert model.eval()(tokens(1, 3), tokens(1, 3)).isfinite().all()


def test_what_is_too_long_is_refused():
    model = make_model()
    with pytest.raises(UserError, match="expected texts of at most 12 tokens, got 13; cut them"):
        model(tokens(1, 13), tokens(1, 3))
    with pytest.raises(UserError, match="expected texts of at most 12 tokens, got 14; cut them"):
        model(tokens(1, 3), tokens(1, 14))


def test_a_decoder_that_sees_the_future_is_warned_of():
    with pytest.warns(UserWarning, match="expected a causal router in a language model, got ExpertChoice"):
        make_model(router="expert_choice", k=2)
