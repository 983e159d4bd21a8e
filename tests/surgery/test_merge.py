import pytest
import torch

from mixtura.errors import UserError
from mixtura.surgery.layers import experts_of, stack_of
from mixtura.surgery.merge import group_similar, match_units, merge
from mixtura.surgery.select import select
from tests.surgery.layers import build, by_hand

X = torch.randn(2, 30, 8, generator=torch.Generator().manual_seed(5))


def permuted(layer, experts):
    """Reorder the hidden units of some experts: the same functions in other weights."""
    stack, order = stack_of(layer.experts), torch.randperm(12)
    rows = torch.cat([order, order + 12])
    up, up_bias, down = stack.up.clone(), stack.up_bias.clone(), stack.down.clone()
    for e in experts:
        up[e], up_bias[e], down[e] = up[e][rows], up_bias[e][rows], down[e][:, order]
    layer.experts = experts_of(stack._replace(up=up, up_bias=up_bias, down=down))
    return order


def test_permuted_copies_become_one_again():
    layer = build("dense")
    expected = stack_of(layer.experts)
    select(layer, [0, 1, 0, 2, 1])
    permuted(layer, [2, 4])
    groups = merge(layer, 3, data=X)
    assert groups == {"": [[0, 2], [1, 4], [3]]}
    merged = stack_of(layer.experts)
    for new, old in ((0, 0), (1, 1), (2, 2)):
        # The order of a group's units is that of its busiest member.
        ours, theirs = merged.up[new], expected.up[old]
        torch.testing.assert_close(ours.sort(0).values, theirs.sort(0).values, rtol=0, atol=1e-6)
    x = X.flatten(0, 1)
    torch.testing.assert_close(by_hand(layer, x), layer(x), rtol=0, atol=1e-6)


def test_units_are_matched():
    layer = build("topk")
    stack = stack_of(layer.experts)
    like = stack._replace(up=stack.up[:1].clone(), down=stack.down[:1].clone())
    order = permuted(layer, [0])
    found = stack_of(layer.experts)
    member = found._replace(up=found.up[:1], down=found.down[:1])
    assert torch.equal(order[match_units(member, like)], torch.arange(12))


def test_members_are_weighted_by_their_tokens():
    layer = build("dense")
    select(layer, [0, 1], k=1)
    layer = build("topk", num_experts=2)
    layer.router.k = 1
    counts = torch.bincount(layer.router(X.flatten(0, 1)).expert_N, minlength=2).double()
    stack, rows = stack_of(layer.experts), layer.router.weight.detach().clone()
    share = (counts / counts.sum()).float()
    merge(layer, 1, data=X, align=False)
    torch.testing.assert_close(layer.experts.down_bias[0], share @ stack.down_bias)
    torch.testing.assert_close(layer.router.weight[0], share @ rows)
    assert 0 < share[0] < 1


def test_grouping_is_by_the_mean_over_pairs():
    similar = torch.tensor([[1.0, 0.9, 0.8, 0.0], [0.9, 1.0, 0.0, 0.0], [0.8, 0.0, 1.0, 0.5], [0.0, 0.0, 0.5, 1.0]])
    assert group_similar(similar, 3) == [[0, 1], [2], [3]]
    assert group_similar(similar, 2) == [[0, 1], [2, 3]]  # 2 is closer to 3 than to 0 and 1 on average
    assert group_similar(similar, 1) == [[0, 1, 2, 3]]


def test_by_router_and_what_is_refused():
    layer = build("topk")
    with torch.no_grad():
        layer.router.weight[3] = layer.router.weight[0]
    assert merge(layer, 3, data=X, by="router") == {"": [[0, 3], [1], [2]]}
    with pytest.raises(UserError, match="num_experts from 1 to 3 of the layer, got 4"):
        merge(layer, 4, data=X)
    with pytest.raises(UserError, match="similarity among outputs, router, got 'looks'"):
        merge(layer, 2, data=X, by="looks")
    with pytest.raises(UserError, match="at least k=2 experts to stay, got 1"):
        merge(layer, 1, data=X)
