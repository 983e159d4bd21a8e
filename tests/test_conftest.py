"""The fixtures do what they promise."""

import hypothesis
import pytest
import torch
from hypothesis import strategies as st

from tests.poison import EMPTY, poison_memory

FIRST = torch.rand(3, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("turn", [1, 2])
def test_every_test_starts_from_the_seed(turn):
    assert torch.equal(torch.rand(3), FIRST)


drawn: dict[int, list[float]] = {}


@hypothesis.given(st.integers(0, 3))
def test_hypothesis_seeds_torch_for_each_example(value):
    drawn.setdefault(value, []).append(torch.rand(()).item())
    assert drawn[value][0] == FIRST[0].item()


def test_hypothesis_runs_the_ci_profile():
    assert hypothesis.settings().derandomize
    assert hypothesis.settings().deadline is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64])
@pytest.mark.usefixtures("poison")
def test_poison_fills_floating_tensors_with_nan(dtype):
    like = torch.zeros(2, 3, dtype=dtype)
    for tensor in [
        torch.empty(2, 3, dtype=dtype),
        torch.empty_like(like),
        torch.empty_strided((2, 3), (3, 1), dtype=dtype),
        like.new_empty(2, 3),
        like.new_empty_strided((2, 3), (3, 1)),
    ]:
        assert tensor.shape == (2, 3)
        assert tensor.dtype == dtype
        assert tensor.isnan().all()


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int8, torch.uint8])
@pytest.mark.usefixtures("poison")
def test_poison_fills_integers_with_the_largest_value(dtype):
    assert (torch.empty(5, dtype=dtype) == torch.iinfo(dtype).max).all()


@pytest.mark.usefixtures("poison")
def test_poison_makes_an_uninitialised_index_fail():
    order_N = torch.empty(2, dtype=torch.long)
    order_N[0] = 1
    with pytest.raises(IndexError):
        torch.zeros(4)[order_N]


@pytest.mark.usefixtures("poison")
def test_poison_shows_in_a_kernel_that_forgets_rows():
    y_TD = torch.empty(4, 2)
    y_TD[1:] = 1.0
    assert y_TD.sum(1).isnan().tolist() == [True, False, False, False]


@pytest.mark.usefixtures("poison")
def test_poison_keeps_layers_and_gradients_working():
    leaf = torch.empty(2, requires_grad=True)
    assert leaf.is_leaf
    assert leaf.requires_grad
    linear = torch.nn.Linear(3, 2)
    linear(torch.ones(1, 3)).sum().backward()
    assert linear.weight.grad is not None
    assert linear.weight.isfinite().all()


def test_poison_is_undone():
    before = [getattr(holder, name) for holder, name in EMPTY]
    with pytest.MonkeyPatch.context() as patch:
        poison_memory(patch)
        assert [getattr(holder, name) for holder, name in EMPTY] != before
    assert [getattr(holder, name) for holder, name in EMPTY] == before
