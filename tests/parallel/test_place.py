import pytest
import torch
from torch import nn

import mixtura as mx
from mixtura.parallel.mesh import make_mesh, one_process
from mixtura.parallel.place import Slots, owned, shard_stacked


@pytest.mark.parametrize(("num", "size"), [(8, 4), (5, 2), (5, 4), (2, 4), (1, 1)])
def test_every_expert_has_one_rank(num, size):
    spans = [owned(num, rank=rank, size=size) for rank in range(size)]
    assert [e for first, last in spans for e in range(first, last)] == list(range(num))


def test_other_experts_are_refused():
    experts = nn.Linear(3, 4)
    with one_process(), pytest.raises(mx.UserError, match="all have E=2 as first dimension, got weight of shape"):
        shard_stacked(experts, make_mesh()["ep"], num_experts=2)


def test_places_and_their_copies():
    slots = Slots(torch.tensor([2, 0, 1, 2, 0, 2]))
    assert slots.num_experts == 3
    assert slots.copies_S.tolist() == [3, 2, 1, 3, 2, 3]
    assert slots.copy_S.tolist() == [0, 0, 0, 1, 1, 2]
    assert slots.first_E.tolist() == [1, 2, 0]
    assert slots.by_expert_S.tolist() == [1, 4, 2, 0, 3, 5]
    for counts in ([0, 0, 0], [7, 1, 4], [2, 5, 1]):
        shares = slots.share(torch.tensor(counts))
        assert [int(shares[slots.expert_S == e].sum()) for e in range(3)] == counts
        assert all(shares[slots.expert_S == e].max() - shares[slots.expert_S == e].min() <= 1 for e in range(3))


def test_stacked_experts_get_one_entry_for_each_place():
    experts = mx.GroupedMLP(num_experts=3, dim=2, hidden=2)
    before = experts.down_proj.clone()
    Slots(torch.tensor([1, 0, 2, 1])).expand(experts)
    assert experts.num_experts == 4
    assert torch.equal(experts.down_proj, before[[1, 0, 2, 1]])
