"""What the Transformers share: which blocks are mixtures, attention against its definition, recomputation, refusals."""

from functools import partial

import pytest
import torch
from torch import nn

import mixtura as mx
from mixtura import UserError
from mixtura.models.blocks import (
    Block,
    BlocksConfig,
    PatchesConfig,
    SelfAttention,
    feed,
    loss_coefficients,
    reset_parts,
    run_block,
)


def test_attention_is_the_softmax_over_all_places():
    attention, x = SelfAttention(8, heads=2), torch.randn(2, 5, 8)
    q, k, v = (part.unflatten(-1, (2, 4)) for part in attention.qkv(x).chunk(3, dim=-1))
    expected = torch.zeros(2, 5, 2, 4)
    for b in range(2):
        for h in range(2):
            for i in range(5):
                share = torch.stack([q[b, i, h] @ k[b, j, h] / 2 for j in range(5)]).softmax(0)
                expected[b, i, h] = sum(share[j] * v[b, j, h] for j in range(5))
    torch.testing.assert_close(attention(x), attention.out(expected.flatten(2)))


@pytest.mark.parametrize(("every", "places"), [(1, [0, 1, 2, 3]), (2, [1, 3]), (3, [2]), (5, [])])
def test_every_nth_block_is_a_mixture(every, places):
    config = BlocksConfig(dim=8, heads=2, hidden=8, layers=4, num_experts=2, moe_every=every)
    assert [n for n in range(4) if config.is_moe(n)] == places
    assert [n for n in range(4) if isinstance(Block(config, n).feed_forward, mx.MoE)] == places


def test_dense_blocks_have_a_width_of_their_own():
    config = BlocksConfig(dim=8, heads=2, hidden=24, expert_hidden=8, num_experts=2, moe_every=2)
    assert Block(config, 0).feed_forward.up_proj.out_features == 24
    assert Block(config, 1).feed_forward.experts.hidden == 8


def test_a_block_adds_both_branches():
    block = Block(BlocksConfig(dim=8, heads=2, hidden=8, num_experts=0), 0)
    x, context = torch.randn(1, 3, 8), torch.zeros(1, 3)
    middle = x + block.attention(block.attention_norm(x))
    torch.testing.assert_close(block(x, context=context), middle + block.feed_forward(block.feed_forward_norm(middle)))


def test_the_context_reaches_the_router():
    config = BlocksConfig(dim=8, heads=2, hidden=8, num_experts=2, router="hash", losses={})
    layer, x = config.feed_forward(0), torch.randn(1, 4, 8)
    with mx.record(layer) as log:
        feed(layer, x, context=torch.tensor([[3, 5, 3, 5]]))
    expert = log[""][0].routing.expert_N
    assert expert.tolist() == layer.router.table[[3, 5, 3, 5], 0].tolist()


def test_recomputation_gives_the_same_gradient():
    linear, x = nn.Linear(3, 3), torch.randn(2, 3)
    calls = []
    linear.register_forward_pre_hook(lambda *_: calls.append(1))
    for interval in (0, 1, 2):
        run_block(partial(linear, x), 1, recompute_interval=interval).square().sum().backward()
    assert len(calls) == 5  # once, and twice for each that is made again
    gradient = linear.weight.grad.clone()
    linear.weight.grad = None
    linear(x).square().sum().backward()
    torch.testing.assert_close(gradient, 3 * linear.weight.grad)


def test_reset_reaches_every_part():
    config = BlocksConfig(dim=8, heads=2, hidden=8, num_experts=2)
    block = Block(config, 0)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.fill_(torch.nan)
    reset_parts(block)
    assert all(parameter.isfinite().all() for parameter in block.parameters())


def test_losses_of_no_use_are_left_out():
    config = BlocksConfig(losses=loss_coefficients({"z": 0.5}))
    assert config.moe().losses == {"z": 0.5}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"dim": 0}, "expected dim of at least 1, got 0"),
        ({"heads": 3}, "expected heads that divide dim=64, got heads=3"),
        ({"num_experts": -1}, r"expected num_experts of at least 0 \(0: dense\), got -1"),
        ({"moe_every": 0}, "expected moe_every of at least 1, got 0"),
    ],
)
def test_impossible_sizes(changed, message):
    with pytest.raises(UserError, match=message):
        BlocksConfig(**changed)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"patch_size": 3}, "expected patch_size that divides image_size=28, got patch_size=3"),
        ({"patch_size": 0}, "expected patch_size of at least 1, got 0"),
        ({"channels": 0}, "expected channels of at least 1, got 0"),
        ({"image_size": -4}, "expected patch_size that divides image_size=-4, got patch_size=4"),
    ],
)
def test_impossible_images(changed, message):
    with pytest.raises(UserError, match=message):
        PatchesConfig(**changed)


def test_a_size_that_is_not_known_yet():
    with pytest.raises(UserError, match="expected image_size of at least 1, got 0"):
        _ = PatchesConfig(image_size=0).patches
