"""Gather-and-sum against the same in torch."""

import pytest
import torch

from mixtura.kernels import choice, rows
from mixtura.kernels.rows import sum_rows
from mixtura.kernels.triton.combine import combine_launch
from tests.kernels.cases import make_index

CASES = {
    "one choice": ([[1], [0], [1]], True),
    "three choices": ([[0, 1, 2], [2, 1, 0]] * 5, True),
    "some dropped": ([[1, 0], [-1, 1], [2, -1], [-1, -1]], True),
    "different numbers of choices": ([[1, 0, 2], [-1, -1, -1], [2, -1, 0]], False),
    "no rows": ([[-1], [-1]], True),
    "no rows, no slots": ([[-1], [-1]], False),
    "no tokens": ([], True),
    "no tokens, no slots": ([], False),
}


def combine(y_ND, index):
    out_TD, launch = combine_launch(y_ND, index)
    launch.run()
    return out_TD


@pytest.mark.parametrize(("choices", "regular"), CASES.values(), ids=list(CASES))
@pytest.mark.parametrize("dim", [1, 5, 600])  # one column, less than a block, two blocks
@pytest.mark.usefixtures("poison")
def test_each_token_gets_the_sum_of_its_rows(choices, regular, dim):
    index = make_index(choices, num_experts=3, regular=regular)
    y_ND = torch.randn(index.token_N.shape[0], dim)
    y_ND[int(index.counts_E.sum()) :] = 0  # as kernels leave it
    torch.testing.assert_close(combine(y_ND, index), sum_rows(y_ND, index))


@pytest.mark.parametrize("regular", [True, False], ids=["slots", "no slots"])
def test_the_tail_is_not_added(regular):
    index = make_index([[0], [1], [-1]], num_experts=2, regular=regular)
    y_ND = torch.tensor([[1.0], [2.0], [torch.nan]])
    assert combine(y_ND, index).tolist() == [[1.0], [2.0], [0.0]]


@pytest.mark.parametrize("regular", [True, False], ids=["slots", "no slots"])
def test_a_nan_reaches_only_the_token_whose_row_has_it(regular):
    index = make_index([[-1, 0], [0, 1]], num_experts=2, regular=regular)
    y_ND = torch.tensor([[5.0], [torch.nan], [2.0], [torch.nan]])
    assert combine(y_ND, index).isnan().flatten().tolist() == [False, True]


@pytest.mark.parametrize("regular", [True, False], ids=["slots", "no slots"])
def test_combining_uses_the_kernel_where_it_is_chosen_and_has_its_gradient(regular, monkeypatch):
    monkeypatch.setattr(choice, "is_fused", lambda tensor: True)
    index = make_index([[0, 1], [1, -1], [2, 0]], num_experts=3, regular=regular)
    y_ND = torch.randn(6, 4, requires_grad=True)
    y_TD = rows.combine_rows(y_ND, index)
    assert torch.equal(y_TD, combine(y_ND.detach(), index))
    grad_TD = torch.randn(3, 4)
    assert torch.equal(torch.autograd.grad(y_TD, y_ND, grad_TD)[0][:5], grad_TD[index.token_N[:5]])


def test_registered_as_torch_wants_it():
    index = make_index([[0, 1], [1, -1]], num_experts=2)
    args = (torch.randn(4, 3), index.token_N, index.counts_E, index.slot_TK, 2)
    torch.library.opcheck(torch.ops.mixtura.triton_combine, args)
