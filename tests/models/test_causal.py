"""The decoder of published checkpoints; its logits are compared with transformers' in tests/hub."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import mixtura as mx
from mixtura.errors import UserError
from mixtura.models.attention import AttentionConfig, Latent, Rotary
from mixtura.models.causal import Causal, CausalConfig
from mixtura.models.sample import generate

MOE = mx.MoEConfig(dim=16, hidden=8, num_experts=4, k=2, losses={"load_balance": 1e-2})


def config(**changes) -> CausalConfig:
    values = {"vocab_size": 20, "context": 12, "layers": 3, "dim": 16, "heads": 4, "hidden": 24}
    return CausalConfig.plain(**{**values, **changes})


def test_which_blocks_are_mixtures():
    model = Causal(replace(config(moe=MOE), dense_blocks=(1,)))
    assert [type(block.feed_forward).__name__ for block in model.blocks] == ["MoE", "MLP", "MoE"]
    assert [model.config.is_moe(number) for number in range(3)] == [True, False, True]


def test_a_router_with_a_bias():
    model = Causal(replace(config(moe=MOE), router_bias=True))
    assert model.blocks[0].feed_forward.router.gate.bias.shape == (4,)
    assert model.blocks[0].feed_forward.router.gate is not model.blocks[1].feed_forward.router.gate


def test_tied_weights_are_one():
    model = Causal(replace(config(), tie_weights=True))
    assert model.head.weight is model.embedding.weight
    model.to_empty(device="cpu")
    model.tie()
    assert model.head.weight is model.embedding.weight


def test_windows_by_block():
    model = Causal(replace(config(), windows=(None, 2, 4)))
    assert [block.attention.window for block in model.blocks] == [None, 2, 4]


def test_a_token_depends_on_no_later_one():
    model = Causal(config(moe=MOE)).eval()
    ids = torch.randint(20, (1, 10))
    changed = ids.clone()
    changed[:, 6:] = (changed[:, 6:] + 1) % 20
    torch.testing.assert_close(model(ids)[:, :6], model(changed)[:, :6])


LATENT = AttentionConfig(
    dim=16,
    heads=4,
    kv_heads=4,
    head_dim=4,
    rotary=Rotary.plain(2, base=1e4),
    latent=Latent(kv_rank=6, q_rank=None, value_dim=3),
)
HALF = replace(config().attention, kv_heads=2, rotary=Rotary.plain(2, base=1e4), sinks=True, qk_norm="head")
CONFIGS = {
    "plain": config(kv_heads=2),
    "a mixture": config(moe=MOE),
    "windows": replace(config(), windows=(None, 2, 4)),
    "sinks, windows, half of a head turns": replace(config(), attention=HALF, windows=(3, None, 5)),
    "latent": replace(config(moe=MOE), attention=LATENT),
    "scales": replace(config(), embedding_scale=3.0, residual_scale=0.3, logits_scale=5.0),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_token_by_token_with_a_cache(name):
    """The same logits as at once, whatever the parts in which the tokens come."""
    model = Causal(CONFIGS[name]).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4)
    ids = torch.randint(20, (2, 12))
    expected = model(ids)
    for parts in ([1] * 12, [5, 1, 1, 1, 4], [3, 9]):
        cache = model.new_cache()
        with torch.no_grad():
            got = torch.cat([model(part, cache=cache) for part in ids.split(parts, dim=1)], dim=1)
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
        assert cache.length == 12
    with pytest.raises(UserError, match=r"expected at most 12 tokens \(context\), got 13"):
        model(ids[:, :1], cache=cache)


@pytest.mark.parametrize("name", CONFIGS)
def test_generation_takes_the_tokens_of_whole_forwards(name):
    model = Causal(CONFIGS[name]).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4)
    ids = torch.tensor([3, 1, 4])
    for _ in range(9):
        with torch.no_grad():
            ids = torch.cat([ids, model(ids.unsqueeze(0))[0, -1:].argmax(-1)])
    assert list(generate(model, torch.tensor([3, 1, 4]), max_tokens=9, temperature=0.0)) == ids[3:].tolist()


def test_scales_by_hand():
    model = Causal(replace(config(), layers=0, embedding_scale=3.0, logits_scale=5.0)).eval()
    ids = torch.arange(4).view(1, 4)
    expected = model.head(model.norm(3 * model.embedding(ids))) / 5
    torch.testing.assert_close(model(ids), expected)


def test_it_learns():
    model = Causal(config(moe=MOE)).train()
    ids = torch.randint(20, (8, 12))
    optimizer = torch.optim.AdamW(mx.param_groups(model, lr=1e-2))
    losses = []
    for _ in range(30):
        loss = nn.functional.cross_entropy(model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 3


def test_what_cannot_be_is_refused():
    with pytest.raises(UserError, match="expected a window for each of 3 blocks, got 2"):
        replace(config(), windows=(1, 2))
    with pytest.raises(UserError, match="expected router_bias with a mixture, got moe=None"):
        replace(config(), router_bias=True)
    with pytest.raises(UserError, match="expected heads that divide dim=16 into parts of even width, got heads=3"):
        config(heads=3)
    with pytest.raises(UserError, match=r"expected at most 12 tokens \(context\), got 13"):
        Causal(config())(torch.zeros(1, 13, dtype=torch.long))
