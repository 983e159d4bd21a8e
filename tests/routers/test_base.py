"""What every router shares: its checks, the fp32 logits, jitter, and top_k."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mixtura import UserError
from mixtura.routers.base import Router, check_router, top_k
from mixtura.routers.topk import TopK


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dim": 0, "num_experts": 2, "k": 1}, "expected dim of at least 1, got 0"),
        ({"dim": 4, "num_experts": 0, "k": 1}, "expected num_experts of at least 1, got 0"),
        ({"dim": 4, "num_experts": 2, "k": 0}, "expected 1 <= k <= num_experts, got k=0 with num_experts=2"),
        ({"dim": 4, "num_experts": 2, "k": 3}, "got k=3 with num_experts=2; choose a smaller k"),
    ],
)
def test_sizes_that_no_router_can_have(arguments, message):
    with pytest.raises(UserError, match=message):
        check_router(**arguments)
    with pytest.raises(UserError, match=message):
        TopK(arguments["dim"], arguments["num_experts"], arguments["k"])


@pytest.mark.parametrize("jitter", [-0.1, 1.0])
def test_jitter_is_bounded(jitter):
    with pytest.raises(UserError, match=rf"expected 0 <= jitter < 1, got {jitter}"):
        Router(4, 2, jitter=jitter)


def test_the_base_itself_routes_nothing():
    with pytest.raises(TypeError, match=r"Router defines no forward\(x_TD\) -> Routing"):
        Router(4, 2)(torch.zeros(3, 4))


@given(st.lists(st.lists(st.integers(-5, 5), min_size=4, max_size=4), min_size=1, max_size=5), st.integers(1, 4))
def test_top_k_gives_the_best_first(rows, k):
    scores_TE = torch.tensor(rows, dtype=torch.float32)
    expert_TK = top_k(scores_TE, k)
    assert expert_TK.shape == (len(rows), k)
    for row, experts in zip(rows, expert_TK.tolist(), strict=True):
        assert len(set(experts)) == k
        assert [row[e] for e in experts] == sorted(row, reverse=True)[:k]


@pytest.mark.parametrize("k", [1, 2, 4])
def test_top_k_of_nan_stays_in_range(k):
    experts = top_k(torch.full((2, 4), torch.nan), k)
    assert ((experts >= 0) & (experts < 4)).all()
    assert all(len(set(row)) == k for row in experts.tolist())


def test_logits_are_the_product_in_fp32():
    router, x_TD = Router(6, 3), torch.randn(5, 6)
    torch.testing.assert_close(router.logits(x_TD), x_TD @ router.weight.T)
    router.bfloat16()
    logits_TE = router.logits(x_TD.bfloat16())
    assert logits_TE.dtype is torch.float32
    torch.testing.assert_close(logits_TE, x_TD.bfloat16().float() @ router.weight.float().T)


def test_autocast_leaves_the_logits_alone():
    router, x_TD = Router(6, 3), torch.randn(5, 6)
    plain = router.logits(x_TD)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(router.logits(x_TD), plain)


def test_jitter_multiplies_the_input_within_its_bounds_in_training_only():
    router = Router(1, 1, jitter=0.1)
    x_TD = torch.ones(2000, 1)
    with torch.no_grad():
        router.weight.fill_(1.0)
        factors = router.logits(x_TD)
        assert factors.min() >= 0.9
        assert factors.max() <= 1.1
        assert factors.std().item() == pytest.approx(0.2 / 12**0.5, rel=0.05)  # uniform, of width 0.2
        assert torch.equal(router.eval().logits(x_TD), x_TD)


def test_initial_weights():
    assert Router(256, 100).weight.std().item() == pytest.approx(0.1 / 16, rel=0.02)
    assert Router(256, 100, init_std=0.5).weight.std().item() == pytest.approx(0.5, rel=0.02)


def test_print_shows_the_sizes():
    assert repr(TopK(4, 3, 2)) == "TopK(dim=4, num_experts=3, k=2)"
