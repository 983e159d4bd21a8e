import pytest
from torch import nn

import mixtura as mx
from mixtura.parallel.mesh import make_mesh, one_process
from mixtura.parallel.place import owned, shard_stacked


@pytest.mark.parametrize(("num", "size"), [(8, 4), (5, 2), (5, 4), (2, 4), (1, 1)])
def test_every_expert_has_one_rank(num, size):
    spans = [owned(num, rank=rank, size=size) for rank in range(size)]
    assert [e for first, last in spans for e in range(first, last)] == list(range(num))


def test_other_experts_are_refused():
    experts = nn.Linear(3, 4)
    with one_process(), pytest.raises(mx.UserError, match="all have E=2 as first dimension, got weight of shape"):
        shard_stacked(experts, make_mesh()["ep"], num_experts=2)
