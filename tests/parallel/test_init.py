import mixtura as mx
from mixtura import parallel


def test_every_name_is_there_and_documented():
    for name in parallel.__all__:
        assert getattr(parallel, name).__doc__


def test_the_top_has_the_one_that_everybody_needs():
    assert mx.parallelize is parallel.parallelize
    assert mx.parallel is parallel
