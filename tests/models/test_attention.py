"""Attention against sums written out by hand."""

import math

import pytest
import torch

from mixtura.errors import UserError
from mixtura.models.attention import Attention, AttentionConfig, Latent, LatentAttention, Rotary, attend


def by_hand(q, k, v, *, window=None, sinks=None, scale=None):
    """One head and one token at a time."""
    (B, H, L, d), G = q.shape, k.shape[1]
    out = torch.zeros(B, H, L, v.shape[-1], dtype=q.dtype)
    for b in range(B):
        for h in range(H):
            for i in range(L):
                seen = range(max(0, i - (window or L) + 1), i + 1)
                scores = torch.stack([q[b, h, i] @ k[b, h * G // H, j] * (scale or d**-0.5) for j in seen])
                extra = scores.new_tensor([]) if sinks is None else sinks[h : h + 1]
                share = torch.cat([scores, extra]).softmax(0)
                out[b, h, i] = sum(share[n] * v[b, h * G // H, j] for n, j in enumerate(seen))
    return out


@pytest.mark.parametrize("window", [None, 1, 3, 9])
@pytest.mark.parametrize("with_sinks", [False, True])
@pytest.mark.parametrize("G", [1, 2, 4])
def test_attend(window, with_sinks, G):
    q, k, v = torch.randn(2, 4, 6, 8), torch.randn(2, G, 6, 8), torch.randn(2, G, 6, 5)
    sinks = torch.randn(4) if with_sinks else None
    got = attend(q, k, v, window=window, sinks=sinks, scale=0.3)
    torch.testing.assert_close(got, by_hand(q, k, v, window=window, sinks=sinks, scale=0.3), rtol=1e-5, atol=1e-6)


def test_sinks_learn():
    sinks = torch.zeros(2, requires_grad=True)
    x = torch.randn(1, 2, 3, 4)
    attend(x, x, x, sinks=sinks).sum().backward()
    assert (sinks.grad != 0).all()


def test_a_rotation_turns_each_pair_by_its_angle():
    for interleaved in (False, True):
        rotary = Rotary(frequencies=(1.0, 0.5), scale=2.0, interleaved=interleaved)
        x = torch.zeros(1, 1, 3, 4)
        x[..., 0] = 1  # the first of the first pair
        turned = rotary.rotate(x, rotary.tables(3, like=x))
        expected = [[2 * math.cos(p), 0.0, 2 * math.sin(p), 0.0] for p in range(3)]
        torch.testing.assert_close(turned[0, 0], torch.tensor(expected))


def test_products_depend_on_distance_alone():
    rotary = Rotary.plain(8, base=100.0)
    q, k = (torch.randn(8).expand(1, 1, 10, 8) for _ in range(2))
    tables = rotary.tables(10, like=q)
    scores = (rotary.rotate(q, tables) @ rotary.rotate(k, tables).mT)[0, 0]
    for distance in range(10):
        diagonal = scores.diagonal(-distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal))


def config(**changes) -> AttentionConfig:
    values = {"dim": 12, "heads": 4, "kv_heads": 2, "head_dim": 6, "rotary": Rotary.plain(6, base=100.0)}
    return AttentionConfig(**{**values, **changes})


@pytest.mark.parametrize("qk_norm", ["none", "head", "all"])
def test_where_queries_and_keys_are_normalised(qk_norm):
    attention = Attention(config(qk_norm=qk_norm, bias=True, out_bias=True, sinks=True))
    shapes = {name: tuple(p.shape) for name, p in attention.named_parameters()}
    norms = {"none": None, "head": (6,), "all": (24,)}[qk_norm]
    assert shapes.get("q_norm.weight") == norms
    assert shapes.get("k_norm.weight") == ((12,) if qk_norm == "all" else norms)
    assert (shapes["k.bias"], shapes["out.bias"], shapes["sinks"]) == ((12,), (12,), (4,))
    x = torch.randn(2, 5, 12)
    tables = attention.config.rotary.tables(5, like=x)
    y = attention(x, tables)
    assert y.shape == x.shape
    with torch.no_grad():
        attention.q.weight *= 3
        attention.q.bias *= 3
    same = torch.allclose(attention(x, tables), y, atol=1e-5)
    assert same == (qk_norm != "none")


def test_no_token_sees_a_later_one():
    latent = Latent(kv_rank=5, q_rank=7, value_dim=3)
    for attention in (
        Attention(config(sinks=True), window=3),
        LatentAttention(config(kv_heads=4, rotary=Rotary.plain(2, base=100.0), latent=latent)),
    ):
        x = torch.randn(1, 6, 12)
        tables = attention.config.rotary.tables(6, like=x)
        changed = x.clone()
        changed[:, 4:] += 1
        before, after = attention(x, tables), attention(changed, tables)
        torch.testing.assert_close(before[:, :4], after[:, :4])
        assert not torch.allclose(before[:, 4:], after[:, 4:])


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match="expected kv_heads that divide heads=4, got kv_heads=3"):
        config(kv_heads=3)
    with pytest.raises(UserError, match="expected qk_norm among none, head, all, got 'some'"):
        config(qk_norm="some")
