"""Soft MoE: slots by hand, sequences that do not meet, padding without a share."""

import pytest
import torch

import mixtura as mx
from mixtura import UserError
from mixtura.routers import Soft


def layer(**options):
    router = Soft(6, 4, slots_per_expert=2, **options)
    torch.nn.init.normal_(router.weight)
    torch.nn.init.constant_(router.scale, 3.0)
    return mx.MoE(router=router, experts=mx.GroupedMLP(num_experts=4, dim=6, hidden=8))


def test_shares_are_the_two_softmaxes_of_cosines():
    router, x = layer().router, torch.randn(5, 6)
    routing = router(x)
    cosine = torch.stack([torch.cosine_similarity(x, phi.expand_as(x), dim=-1) for phi in router.weight], dim=-1)
    torch.testing.assert_close(routing.dispatch_TS, (3 * cosine).softmax(0))
    torch.testing.assert_close(routing.combine_TS, (3 * cosine).softmax(1))
    assert routing.expert_N.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    torch.testing.assert_close(routing.logits_TE.softmax(-1), routing.probs_TE)
    torch.testing.assert_close(routing.probs_TE, routing.combine_TS.view(5, 4, 2).sum(-1))


def test_shares_sum_to_one():
    routing = layer().router(torch.randn(12, 6), sequences=3)
    torch.testing.assert_close(routing.combine_TS.sum(-1), torch.ones(12))
    torch.testing.assert_close(routing.dispatch_TS.view(3, 4, 8).sum(1), torch.ones(3, 8))


def test_sequences_do_not_meet():
    moe, x = layer(), torch.randn(3, 5, 6)
    torch.testing.assert_close(moe(x), torch.stack([moe(sequence) for sequence in x]))
    other = torch.cat([x[:1], torch.randn(2, 5, 6)])
    assert torch.equal(moe(other)[0], moe(x)[0])


def test_padding_has_no_share_and_gets_nothing():
    moe, x = layer(), torch.randn(2, 5, 6)
    mask = torch.tensor([[True, True, True, False, False], [True] * 5])
    y = moe(x, mask=mask)
    torch.testing.assert_close(y[0, :3], moe(x[0, :3]))
    torch.testing.assert_close(y[1], moe(x[1]))
    assert not y[0, 3:].any()


def test_a_sequence_of_padding_alone_gives_zeros_and_finite_gradients():
    moe, x = layer(), torch.randn(2, 3, 6, requires_grad=True)
    y = moe(x, mask=torch.tensor([[False] * 3, [True] * 3]))
    assert not y[0].any()
    y.sum().backward()
    assert x.grad.isfinite().all()
    assert not x.grad[0].any()


@pytest.mark.parametrize("shape", [(0, 6), (0, 4, 6), (2, 0, 6), (6,), (2, 3, 4, 6)])
def test_shapes(shape):
    assert layer()(torch.randn(shape)).shape == shape


def test_the_task_teaches_phi_and_the_scale():
    moe = layer()
    moe(torch.randn(4, 6)).square().sum().backward()
    assert moe.router.weight.grad.norm() > 0
    assert moe.router.scale.grad.abs() > 0


def test_the_size_of_tokens_and_of_phi_does_not_matter():
    router, x = layer().router, torch.randn(4, 6)
    before = router(x).combine_TS
    with torch.no_grad():
        router.weight.mul_(5)
    torch.testing.assert_close(router(x * 0.1).combine_TS, before)


def test_a_gate_of_ones_own_scores_slots():
    router = Soft(6, 4, slots_per_expert=2, gate=torch.nn.Linear(6, 8))
    assert router(torch.randn(5, 6)).combine_TS.shape == (5, 8)


def test_reset():
    router = layer().router
    router.reset_parameters()
    assert router.scale.item() == 1.0
    assert router.weight.std() < 0.2


def test_errors():
    with pytest.raises(UserError, match="expected slots_per_expert of at least 1, got 0"):
        Soft(6, 4, slots_per_expert=0)
    with pytest.raises(UserError, match="expected num_experts of at least 1, got 0"):
        Soft(6, 0)
    with pytest.raises(UserError, match="expected k=4 with router='soft', got k=2; leave k out"):
        mx.MoEConfig(dim=6, hidden=8, num_experts=4, k=2, router="soft").build()
