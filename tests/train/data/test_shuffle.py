import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mixtura.errors import UserError
from mixtura.train.data.shuffle import ShuffledStream


class Numbers(ShuffledStream[torch.Tensor]):
    """Batches of the numbers below `size`, and with them a random number each time."""

    def __init__(self, size, **options):
        self.size = size
        super().__init__(**{"batch_size": 3, "seed": 0, "data": {"size": size}} | options)

    def epoch(self, generator):
        return torch.randperm(self.size, generator=generator)

    def gather(self, rows_B, generator):
        return [*rows_B.tolist(), torch.rand((), generator=generator).item()]


def numbers(stream, batches):
    return [number for _ in range(batches) for number in next(stream)[:-1]]


@given(size=st.integers(1, 20), batch_size=st.integers(1, 7), seed=st.integers(0, 3))
def test_every_epoch_has_every_sample_once(size, batch_size, seed):
    drawn = numbers(Numbers(size, batch_size=batch_size, seed=seed), 1 + 3 * size // batch_size)
    for epoch in range(2):
        assert sorted(drawn[epoch * size : (epoch + 1) * size]) == list(range(size))


@given(size=st.integers(1, 20), world=st.integers(1, 4), before=st.integers(0, 5), after=st.integers(1, 4))
def test_ranks_share_out_one_order_and_another_number_of_them_goes_on(size, world, before, after):
    alone = numbers(Numbers(size, batch_size=1), 200)
    ranks = [Numbers(size, batch_size=2, rank=rank, world_size=world) for rank in range(world)]
    drawn = [number for _ in range(before) for rank in ranks for number in numbers(rank, 1)]
    assert len({str(rank.state_dict()) for rank in ranks}) == 1
    following = [Numbers(size, batch_size=1, rank=rank, world_size=after) for rank in range(after)]
    for stream in following:
        stream.load_state_dict(ranks[0].state_dict())
    drawn += [number for _ in range(3) for rank in following for number in numbers(rank, 1)]
    assert drawn == alone[: len(drawn)]


def test_what_a_batch_draws_depends_on_its_place_alone():
    first, second = Numbers(10), Numbers(10)
    batches = [next(first) for _ in range(6)]
    assert len({batch[-1] for batch in batches}) == 6
    next(second)
    third = Numbers(10)
    third.load_state_dict(second.state_dict())
    assert [next(third) for _ in range(5)] == batches[1:]


def test_seeds_differ():
    assert numbers(Numbers(50, seed=0), 10) != numbers(Numbers(50, seed=1), 10)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"batch_size": 0}, "batch_size of at least 1, got 0"), ({"rank": 1}, "a rank from 0 to 0, got 1")],
)
def test_a_stream_that_cannot_be_is_refused(change, message):
    with pytest.raises(UserError, match=message):
        Numbers(5, **change)


def test_the_state_of_other_data_is_refused():
    with pytest.raises(UserError, match=r"size = 6.*, got size = 5"):
        Numbers(5).load_state_dict(Numbers(6).state_dict())
