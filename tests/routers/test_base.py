"""What every router shares: its checks, the fp32 logits, jitter, and top_k."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import mixtura as mx
from mixtura import UserError
from mixtura.routers import ROUTERS, Dense
from mixtura.routers.base import Router, check_router, set_temperature, top_k
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


class TestNoise:
    def test_it_is_added_to_the_logits_in_training_only(self):
        router, x_TD = Dense(6, 4, noise=0.5), torch.randn(3000, 6)
        clean = x_TD @ router.weight.T
        noise = router.logits(x_TD) - clean
        assert noise.std().item() == pytest.approx(0.5, rel=0.03)
        assert noise.mean().item() == pytest.approx(0.0, abs=0.02)
        torch.testing.assert_close(router.eval().logits(x_TD), clean)

    def test_one_over_e(self):
        assert Router(6, 4, noise="1/E").noise == 0.25

    @pytest.mark.parametrize("noise", [-1.0, "1/K", float("nan")])
    def test_bad_noise(self, noise):
        with pytest.raises(UserError, match=rf'expected noise of at least 0, or "1/E", got {noise!r}'):
            Router(6, 4, noise=noise)


class TestTemperature:
    def test_logits_are_divided_by_it(self):
        router, x_TD = Router(6, 3, temperature=4.0), torch.randn(5, 6)
        torch.testing.assert_close(router.logits(x_TD), x_TD @ router.weight.T / 4)
        set_temperature(router, 0.5)
        torch.testing.assert_close(router.logits(x_TD), x_TD @ router.weight.T * 2)

    def test_resetting_sets_it_back(self):
        router = Router(6, 3, temperature=4.0)
        set_temperature(router, 0.5)
        router.reset_parameters()
        assert router.temperature.item() == 4.0

    @pytest.mark.parametrize(
        ("act", "message"),
        [
            (lambda: Router(6, 3, temperature=0.0), "expected a temperature above 0, got 0.0"),
            (lambda: set_temperature(Router(6, 3, temperature=1.0), -1.0), "expected a temperature above 0, got -1.0"),
            (lambda: set_temperature(Router(6, 3), 1.0), "expected a router with a temperature, got none"),
        ],
    )
    def test_bad_temperatures(self, act, message):
        with pytest.raises(UserError, match=message):
            act()


@pytest.mark.parametrize("name", ROUTERS)
class TestEveryRouter:
    """Of each router in the dict, what no other table asks."""

    def route(self, name, router, x_TD):
        torch.manual_seed(2)
        known = {"context_T": torch.arange(len(x_TD))} if router.needs_context else {}
        return router(x_TD, **known)

    def test_fp32_in_a_half_precision_module_and_under_autocast(self, name):
        router, x_TD = ROUTERS[name](6, 4), torch.randn(5, 6).bfloat16()
        with torch.no_grad():
            for p in router.parameters():
                p.copy_(p.bfloat16())
        exact = self.route(name, router, x_TD.float())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = self.route(name, router.bfloat16(), x_TD)
        for field in ("logits_TE", "probs_TE", "weight_N"):
            assert getattr(rounded, field).dtype is torch.float32
            torch.testing.assert_close(getattr(rounded, field), getattr(exact, field))
        assert torch.equal(rounded.expert_N, exact.expert_N)

    def test_a_copy_routes_alike_and_is_its_own(self, name):
        router, x_TD = ROUTERS[name](6, 4), torch.randn(5, 6)
        other = copy.deepcopy(router)
        assert torch.equal(self.route(name, other, x_TD).weight_N, self.route(name, router, x_TD).weight_N)
        theirs = {tensor.data_ptr() for tensor in other.state_dict().values()}
        assert not theirs & {tensor.data_ptr() for tensor in router.state_dict().values()}

    @pytest.mark.parametrize("sizes", [(0, 4), (6, 0), (-1, 4)])
    def test_sizes_below_one(self, name, sizes):
        with pytest.raises(UserError, match=r"expected (dim|num_experts) of at least 1, got (0|-1)"):
            ROUTERS[name](*sizes)

    def test_more_choices_than_experts(self, name):
        if ROUTERS[name].takes_k:
            with pytest.raises(UserError, match="expected 1 <= k <= num_experts, got k=5 with num_experts=4"):
                ROUTERS[name](6, 4, k=5)
        else:
            recipe = mx.MoEConfig(dim=6, hidden=4, num_experts=4, k=5, router=name)
            with pytest.raises(UserError, match=rf"expected k=\d with router='{name}', got k=5; leave k out"):
                recipe.build()
