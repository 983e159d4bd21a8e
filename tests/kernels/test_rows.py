"""Rows by index: sums, gathers and their gradients, against plain loops."""

import contextlib

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from mixtura.kernels import native, use
from mixtura.kernels.rows import Function, RowIndex, combine_rows, gather_rows, is_traced, sum_rows
from tests.kernels.cases import make_index

CASES = {
    "one choice": ([[1], [0], [1]], True),
    "two choices": ([[1, 0], [2, 1], [2, 0]], True),
    "three choices": ([[0, 1, 2], [2, 1, 0]], True),
    "one dropped": ([[1, 0], [-1, 1], [2, -1]], True),
    "token without rows": ([[-1, -1], [0, 1]], True),
    "all dropped": ([[-1], [-1]], True),
    "different numbers of choices": ([[1, 0, 2], [-1, -1, -1], [2, -1, 0]], False),
    "no rows, no slots": ([[-1], [-1]], False),
}
cases = pytest.mark.parametrize(("choices", "regular"), CASES.values(), ids=list(CASES))


@pytest.fixture(autouse=True, params=["chosen", "cpu"])
def kernel(request):
    """Sums by the compiled library where there is one, and by torch."""
    with contextlib.nullcontext() if request.param == "chosen" else use(request.param):
        yield request.param


def rows_of(index: RowIndex, token: int) -> list[int]:
    return [n for n, t in enumerate(index.token_N.tolist()[: index.counts_E.sum()]) if t == token]


def without_tail(rows_ND, index):
    """The rows with zeros in the tail, as kernels give them."""
    rows_ND = rows_ND.detach().clone()
    rows_ND[index.counts_E.sum() :] = 0
    return rows_ND


@cases
@pytest.mark.usefixtures("poison")
def test_gather_copies_tokens_and_its_gradient_adds_them(choices, regular):
    index = make_index(choices, num_experts=3, regular=regular)
    x_TD = torch.randn(len(choices), 4, requires_grad=True)
    rows_ND = gather_rows(x_TD, index)
    grad_ND = without_tail(torch.randn_like(rows_ND), index)
    rows_ND.backward(grad_ND)
    assert torch.equal(rows_ND, x_TD[index.token_N])
    for t in range(len(choices)):
        torch.testing.assert_close(x_TD.grad[t], grad_ND[rows_of(index, t)].sum(0))


@cases
@pytest.mark.usefixtures("poison")
def test_combine_adds_rows_and_its_gradient_copies_them(choices, regular):
    index = make_index(choices, num_experts=3, regular=regular)
    y_ND = without_tail(torch.randn(index.token_N.shape[0], 4), index).requires_grad_()
    y_TD = combine_rows(y_ND, index)
    grad_TD = torch.randn_like(y_TD)
    y_TD.backward(grad_TD)
    assert y_TD.shape == (len(choices), 4)
    for t in range(len(choices)):
        torch.testing.assert_close(y_TD[t], y_ND[rows_of(index, t)].sum(0))
    assert torch.equal(y_ND.grad, grad_TD[index.token_N])


@pytest.mark.parametrize("regular", [True, False])
@pytest.mark.parametrize("dropless", [True, False])
@pytest.mark.parametrize("k", [1, 2])
def test_no_tokens(regular, dropless, k):
    slot_TK = torch.empty(0, k, dtype=torch.int64) if regular else None
    index = RowIndex(torch.empty(0, dtype=torch.int64), torch.zeros(3, dtype=torch.int64), slot_TK, 0, dropless)
    x_TD = torch.randn(0, 4, requires_grad=True)
    y_TD = combine_rows(gather_rows(x_TD, index), index)
    y_TD.sum().backward()
    assert y_TD.shape == x_TD.grad.shape == (0, 4)


def test_other_slots_read_another_layout():
    index = make_index([[0, 1], [1, 0]], num_experts=2)
    padded_ND = torch.tensor([[1.0], [2.0], [torch.nan], [3.0], [4.0], [torch.nan]])
    assert sum_rows(padded_ND, index, torch.tensor([[0, 3], [4, 1]])).tolist() == [[4.0], [6.0]]


def test_a_dropped_slot_takes_nothing_from_the_row_that_stands_in():
    index = make_index([[0, -1], [0, 1]], num_experts=2)
    y_ND = torch.tensor([[torch.nan], [1.0], [2.0]])  # row 0 belongs to token 0, and stands in for its dropped slot
    assert sum_rows(y_ND, index).isnan().flatten().tolist() == [True, False]
    y_ND = torch.tensor([[5.0], [torch.nan], [2.0]])
    assert sum_rows(y_ND, index).flatten().tolist()[0] == 5.0
    first_is_nan = make_index([[1, -1], [0, -1]], num_experts=2)
    assert sum_rows(torch.tensor([[torch.nan], [7.0]]), first_is_nan).flatten().tolist()[0] == 7.0


def test_neither_direction_keeps_tensors_for_the_backward_pass():
    index = make_index([[0, 1], [1, 0]], num_experts=2)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor), lambda nothing: nothing):
        combine_rows(gather_rows(torch.randn(2, 3, requires_grad=True), index), index)
    assert not any(tensor.is_floating_point() for tensor in kept)  # indices only


def test_repeated_runs_are_equal_to_the_last_bit():
    choices = torch.stack([torch.randperm(8)[:3] for _ in range(200)]).tolist()
    index = make_index(choices, num_experts=8)
    y_ND = torch.randn(600, 16)
    first = sum_rows(y_ND, index)
    assert all(torch.equal(first, sum_rows(y_ND, index)) for _ in range(5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [1, 37, 200])
def test_the_library_adds_what_torch_adds(kernel, dtype, width):
    if kernel == "cpu" or native.availability():
        pytest.skip("torch against itself")
    index = make_index([[t % 5, -1 if t % 3 else (t + 1) % 5, (t + 2) % 5] for t in range(700)], num_experts=5)
    y_ND = torch.randn(index.token_N.shape[0], width).to(dtype)
    with use("cpu"):
        expected = sum_rows(y_ND, index)
    torch.testing.assert_close(sum_rows(y_ND, index), expected)
    assert sum_rows(y_ND, index).dtype is dtype


def test_float64_gradients():
    index = make_index([[1, 0], [-1, 1], [2, -1]], num_experts=3)
    x_TD = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(lambda x: combine_rows(gather_rows(x, index) ** 2, index), x_TD)


class Cube(Function):
    @staticmethod
    def forward(x, power):
        return x**power

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[0])
        ctx.power = inputs[1]

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * ctx.power * x ** (ctx.power - 1), None


def cube(x):
    return Cube.call(x, 3).sum()


def test_eager_traced_and_transformed_calls_agree():
    x = torch.randn(4, dtype=torch.float64, requires_grad=True)
    expected = 3 * x.detach().square()
    assert torch.autograd.gradcheck(cube, x)
    for run in (cube, torch.compile(cube, backend="aot_eager", fullgraph=True)):
        torch.testing.assert_close(torch.autograd.grad(run(x), x)[0], expected)
    torch.testing.assert_close(torch.func.grad(cube)(x.detach()), expected)
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(cube))(x.detach()[:, None]), expected[:, None])


def test_what_counts_as_traced():
    assert not is_traced(torch.zeros(1))
    assert not is_traced(torch.nn.Parameter(torch.zeros(1)))
    with FakeTensorMode():
        assert is_traced(torch.zeros(1))
    seen = []
    torch.func.vmap(lambda x: seen.append(is_traced(x)) or x)(torch.zeros(2))
    torch.func.grad(lambda x: seen.append(is_traced(x)) or x)(torch.zeros(()))
    assert seen == [True, True]
    assert torch.compile(lambda x: x + is_traced(x), backend="eager", fullgraph=True)(torch.zeros(())) == 1
