"""The fused router against softmax, a stable sort and autograd."""

import pytest
import torch

from mixtura import UserError
from mixtura.kernels.triton.router import route


def loop(logits_TE, *, k, over):
    """The same in plain torch, equal logits in the order of experts."""
    expert_TK = logits_TE.detach().sort(dim=1, descending=True, stable=True).indices[:, :k]
    probs_TE = logits_TE.softmax(1)
    chosen_TK = logits_TE.gather(1, expert_TK).softmax(1) if over == "chosen" else probs_TE.gather(1, expert_TK)
    return probs_TE, chosen_TK, expert_TK, torch.bincount(expert_TK.flatten(), minlength=logits_TE.shape[1])


@pytest.mark.parametrize("over", ["chosen", "all"])
@pytest.mark.parametrize(("T", "E", "k"), [(5, 4, 2), (3, 1, 1), (700, 3, 3), (4, 512, 16), (9, 60, 1), (0, 4, 2)])
@pytest.mark.usefixtures("poison")
def test_choices_weights_counts_and_gradients(over, T, E, k):
    logits_TE = torch.randn(T, E, requires_grad=True)
    got, expected = route(logits_TE, k=k, over=over), loop(logits_TE, k=k, over=over)
    for value, wanted in zip(got, expected, strict=True):
        torch.testing.assert_close(value, wanted)
    grads = torch.randn(T, E), torch.randn(T, k)
    (dlogits,) = torch.autograd.grad(got[:2], logits_TE, grads)
    torch.testing.assert_close(dlogits, torch.autograd.grad(expected[:2], logits_TE, grads)[0])


def test_only_one_of_the_two_results_is_used():
    logits_TE = torch.randn(6, 4, requires_grad=True)
    for which in (0, 1):
        grad = torch.randn(6, (4, 2)[which])
        (got,) = torch.autograd.grad(route(logits_TE, k=2)[which], logits_TE, grad)
        (expected,) = torch.autograd.grad(loop(logits_TE, k=2, over="chosen")[which], logits_TE, grad)
        torch.testing.assert_close(got, expected)


def test_of_equal_logits_the_first_expert_wins_zeros_of_both_signs_included():
    logits_TE = torch.tensor([[0.0, -0.0, 0.0, 0.0], [-0.0, 0.0, -0.0, 1.0], [2.0, 3.0, 3.0, 2.0]])
    _, weight_TK, expert_TK, counts_E = route(logits_TE, k=3)
    assert expert_TK.tolist() == [[0, 1, 2], [3, 0, 1], [1, 2, 0]]
    assert counts_E.tolist() == [3, 3, 2, 1]
    assert weight_TK[0].tolist() == [weight_TK[0, 0].item()] * 3


def test_extremes_are_ordered_as_topk_orders_them_and_masked_experts_come_last():
    inf, nan = torch.inf, torch.nan
    logits_TE = torch.tensor([[-inf, 1e30, -1e30, -inf], [1.0, nan, 3.0, -nan], [-inf, -inf, -inf, 0.0]])
    probs_TE, weight_TK, expert_TK, _ = route(logits_TE, k=3)
    assert expert_TK.tolist() == [[1, 2, 0], [1, 3, 2], [3, 0, 1]]
    assert torch.equal(logits_TE[1].topk(3).values.isnan(), torch.tensor([True, True, False]))
    assert weight_TK[0].tolist() == [1.0, 0.0, 0.0]
    assert probs_TE[2].tolist() == [0.0, 0.0, 0.0, 1.0]


@pytest.mark.parametrize(
    ("shape", "k", "over", "message"),
    [
        ((2, 600), 1, "all", "at most 512 experts for the fused router, got torch.float32 with E=600"),
        ((2, 40), 17, "all", r"expected 1 <= k <= min\(E, 16\) for the fused router, got k=17 with E=40"),
        ((2, 4), 1, "some", "normalised over one of"),
    ],
)
def test_what_it_cannot_do_is_refused(shape, k, over, message):
    with pytest.raises(UserError, match=message):
        route(torch.zeros(shape), k=k, over=over)


def test_registered_as_torch_wants_it():
    torch.library.opcheck(torch.ops.mixtura.triton_route, (torch.randn(3, 4, requires_grad=True), 2, "chosen"))
