"""Tables of names: what is read and what is written are inverses, and no name leads to two places."""

import pytest
import torch

from mixtura.hub.families import FAMILIES
from mixtura.hub.names import GPT_OSS, MIXTRAL, Pair
from mixtura.mapping import fill, rename


def test_experts_are_stacked_with_the_gate_first():
    theirs = {
        f"model.layers.3.block_sparse_moe.experts.{e}.{w}.weight": torch.full((2, 5), 10.0 * e + i)
        for e in range(2)
        for i, w in enumerate(("w1", "w3"))
    }
    stacked = torch.zeros(2, 4, 5)
    fill({"blocks.3.feed_forward.experts.up_proj": stacked}, theirs, rules=[pair.reading() for pair in MIXTRAL])
    assert stacked[:, :, 0].tolist() == [[0, 0, 1, 1], [10, 10, 11, 11]]
    writing = [pair.writing() for pair in MIXTRAL]
    again = dict(rename({"blocks.3.feed_forward.experts.up_proj": stacked}, rules=writing))
    assert again.keys() == theirs.keys()
    assert all(torch.equal(again[name], theirs[name]) for name in theirs)


def test_interleaved_and_transposed_by_hand():
    # Of one expert with D = 1 and F = 2: columns g0 u0 g1 u1.
    theirs = {"model.layers.0.mlp.experts.gate_up_proj": torch.tensor([[[1.0, 10.0, 2.0, 20.0]]])}
    ours = torch.zeros(1, 4, 1)
    fill({"blocks.0.feed_forward.experts.up_proj": ours}, theirs, rules=[pair.reading() for pair in GPT_OSS])
    assert ours.flatten().tolist() == [1, 2, 10, 20]


@pytest.mark.parametrize("kind", FAMILIES)
def test_no_name_stands_twice(kind):
    family = FAMILIES[kind]
    patterns = [rule.pattern for rule in family.reading()]
    assert len(patterns) == len(set(patterns))
    replacements = [rule.replacement for rule in family.writing()]
    assert len(replacements) == len(set(replacements))


def test_what_makes_a_tensor_ours_is_undone():
    x = torch.arange(24.0).view(2, 3, 4)
    for pair in GPT_OSS:
        if pair.to_ours is not None:
            assert pair.to_theirs is not None
            assert torch.equal(pair.to_theirs(pair.to_ours(x)), x), pair


def test_the_names_of_a_dot_are_no_pattern():
    rule = Pair(theirs="a.b", ours="c.d").reading()
    assert rule.pattern == r"a\.b"
