"""TopK, Switch and NoisyTopK against their equations."""

import warnings

import pytest
import torch
from torch import nn

from mixtura import UserError
from mixtura.routers import topk
from mixtura.routers.topk import NoisyTopK, Switch, TopK
from tests.routers.tables import with_logits


def table(routing):
    """Weights as a (T, E) matrix: zero where a token does not go."""
    weights = torch.zeros(routing.num_tokens, routing.num_experts)
    return weights.index_put((routing.token_N, routing.expert_N), routing.weight_N, accumulate=True)


LOGITS = [[2.0, 0.0, 1.0], [-1.0, 3.0, 0.0], [0.0, 0.5, 4.0]]


class TestTopK:
    def test_topk_softmax_normalises_over_the_chosen(self):
        routing = with_logits(TopK(3, 3, 2, order="topk_softmax"), LOGITS)
        assert routing.expert_N.tolist() == [0, 2, 1, 2, 2, 1]
        expected = torch.tensor([[2.0, 1.0], [3.0, 0.0], [4.0, 0.5]]).softmax(-1)
        torch.testing.assert_close(routing.weight_N.view(3, 2), expected)

    def test_softmax_topk_normalises_over_all(self):
        routing = with_logits(TopK(3, 3, 2, order="softmax_topk"), LOGITS)
        probs = torch.tensor(LOGITS).softmax(-1)
        torch.testing.assert_close(routing.weight_N.view(3, 2), probs.topk(2).values)
        assert (routing.weight_N.view(3, 2).sum(-1) < 1).all()
        torch.testing.assert_close(routing.probs_TE, probs)
        torch.testing.assert_close(routing.logits_TE, torch.tensor(LOGITS))

    def test_mixtral_renormalising_the_softmax_is_the_softmax_of_the_chosen(self):
        x_TD = torch.randn(50, 8)
        one = TopK(8, 6, 2, order="topk_softmax", init_std=1.0)
        other = TopK(8, 6, 2, order="softmax_topk", renormalize=True)
        other.load_state_dict(one.state_dict())
        grads = []
        for router in (one, other):
            routing = router(x_TD)
            (routing.weight_N * torch.arange(100.0)).sum().backward()
            grads.append(router.weight.grad)
        torch.testing.assert_close(table(one(x_TD)), table(other(x_TD)))
        torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-4)

    def test_all_chosen_is_the_softmax(self):
        x_TD = torch.randn(5, 4)
        for order in ("topk_softmax", "softmax_topk"):
            router = TopK(4, 3, 3, order=order, init_std=1.0)
            torch.testing.assert_close(table(router(x_TD)), router(x_TD).probs_TE)

    def test_an_unknown_order(self):
        with pytest.raises(UserError, match='expected order "topk_softmax" or "softmax_topk", got \'first\''):
            TopK(4, 2, order="first")

    @pytest.mark.parametrize("options", [{}, {"order": "softmax_topk", "renormalize": True}])
    def test_one_choice_with_a_constant_weight_warns_at_the_line_that_makes_the_router(self, options):
        with pytest.warns(UserWarning, match="with k=1 .* the task gives the router no gradient") as caught:
            router = TopK(4, 2, 1, **options)
        assert caught[0].filename == __file__
        routing = router(torch.randn(5, 4))
        assert routing.weight_N.tolist() == [1.0] * 5
        routing.weight_N.sum().backward()
        assert router.weight.grad.norm().item() == pytest.approx(0, abs=1e-6)

    def test_no_warning_where_the_weight_varies_or_one_expert_is_all_there_is(self):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            TopK(4, 2, 1, order="softmax_topk")
            TopK(4, 1, 1)
            Switch(4, 2)


class TestNoise:
    """V-MoE: TOP_k(softmax(Wx + noise)), not renormalised."""

    def routed(self, order="softmax_topk"):
        router, x_TD = TopK(6, 4, 2, order=order, noise="1/E", init_std=0.5), torch.randn(7, 6)
        clean = x_TD @ router.weight.T
        state = torch.get_rng_state()
        routing = router(x_TD)
        torch.set_rng_state(state)
        return routing, clean, clean + 0.25 * torch.randn(7, 4)

    def test_choice_and_weights_follow_the_noisy_logits_and_the_losses_the_clean_ones(self):
        routing, clean, noisy = self.routed()
        best = noisy.softmax(-1).topk(2)
        assert torch.equal(routing.expert_N, best.indices.flatten())
        torch.testing.assert_close(routing.weight_N, best.values.flatten())
        torch.testing.assert_close(routing.logits_TE, clean)
        torch.testing.assert_close(routing.probs_TE, clean.softmax(-1))

    def test_softmax_over_the_chosen(self):
        routing, _, noisy = self.routed("topk_softmax")
        torch.testing.assert_close(routing.weight_N, noisy.topk(2).values.softmax(-1).flatten())

    def test_the_load_is_the_chance_to_pass_the_kth_noisy_logit(self):
        routing, clean, noisy = self.routed()
        for t in range(7):
            threshold = sorted(noisy[t].tolist())[-2]
            for e in range(4):
                z = (clean[t, e].item() - threshold) / 0.25
                expected = 0.5 * (1 + torch.erf(torch.tensor(z / 2**0.5)).item())
                assert routing.load_TE[t, e].item() == pytest.approx(expected, abs=1e-5)

    def test_neither_noise_nor_load_in_evaluation_or_where_all_are_chosen(self):
        router, x_TD = TopK(6, 4, 2, noise=0.5).eval(), torch.randn(7, 6)
        assert torch.equal(router(x_TD).weight_N, router(x_TD).weight_N)
        assert router(x_TD).load_TE is None
        assert TopK(6, 4, 4, noise=0.5)(x_TD).load_TE is None


class TestSwitch:
    def test_the_weight_is_the_probability_of_the_argmax(self):
        routing = with_logits(Switch(3, 3), LOGITS)
        probs = torch.tensor(LOGITS).softmax(-1)
        assert routing.expert_N.tolist() == [0, 1, 2]
        assert routing.choices == 1
        torch.testing.assert_close(routing.weight_N, probs.max(-1).values)

    def test_initialisation_scale(self):
        assert Switch(64, 500).weight.std().item() == pytest.approx((0.1 / 64) ** 0.5, rel=0.02)

    def test_jitter_in_training_only(self):
        router, x_TD = Switch(8, 4, jitter=1e-2), torch.randn(6, 8)
        clean = x_TD @ router.weight.T
        noisy = router(x_TD).logits_TE
        assert not torch.equal(noisy, clean)
        # Each term of a logit changes by at most one hundredth.
        assert ((noisy - clean).abs() <= 0.0101 * (x_TD.abs() @ router.weight.abs().T)).all()
        torch.testing.assert_close(router.eval()(x_TD).logits_TE, clean)

    def test_the_task_teaches_the_router(self):
        router = Switch(4, 3)
        router(torch.randn(5, 4)).weight_N.sum().backward()
        assert router.weight.grad.norm() > 0


class TestNoisyTopK:
    def router(self, k=2, num_experts=4):
        router = NoisyTopK(6, num_experts, k, init_std=0.5)
        nn.init.normal_(router.noise_weight, std=0.5)
        return router

    def test_training_adds_the_equations_noise(self):
        router, x_TD = self.router(), torch.randn(7, 6)
        state = torch.get_rng_state()
        routing = router(x_TD)
        torch.set_rng_state(state)
        clean = x_TD @ router.weight.T
        noisy = clean + torch.randn(7, 4) * (nn.functional.softplus(x_TD @ router.noise_weight.T) + 1e-2)
        best = noisy.topk(2)
        assert torch.equal(routing.expert_N, best.indices.flatten())
        torch.testing.assert_close(routing.weight_N, best.values.softmax(-1).flatten())
        torch.testing.assert_close(routing.logits_TE, clean)
        torch.testing.assert_close(routing.probs_TE, clean.softmax(-1))

    def test_the_load_compares_with_the_threshold_that_leaves_the_expert_itself_out(self):
        router, x_TD = self.router(k=2, num_experts=3), torch.randn(4, 6)
        state = torch.get_rng_state()
        routing = router(x_TD)
        torch.set_rng_state(state)
        clean = x_TD @ router.weight.T
        std = nn.functional.softplus(x_TD @ router.noise_weight.T) + 1e-2
        noisy = clean + torch.randn(4, 3) * std
        for t in range(4):
            for e in range(3):
                others = sorted(noisy[t, other].item() for other in range(3) if other != e)
                threshold = others[0]  # with K = 2, the second best of the two others
                z = (clean[t, e].item() - threshold) / std[t, e].item()
                expected = 0.5 * (1 + torch.erf(torch.tensor(z / 2**0.5)).item())
                assert routing.load_TE[t, e].item() == pytest.approx(expected, abs=1e-5)

    def test_evaluation_has_no_noise_and_no_load(self):
        router, x_TD = self.router().eval(), torch.randn(7, 6)
        first, second = router(x_TD), router(x_TD)
        assert torch.equal(first.weight_N, second.weight_N)
        assert torch.equal(first.expert_N, (x_TD @ router.weight.T).topk(2).indices.flatten())
        assert first.load_TE is None

    def test_no_noise_left_divides_by_no_zero(self):
        router, x_TD = self.router(), torch.ones(7, 6)
        nn.init.constant_(router.noise_weight, -100.0)  # softplus gives 0; the floor remains
        routing = router(x_TD)
        assert routing.load_TE.isfinite().all()
        routing.load_TE.sum().backward()
        assert router.weight.grad.isfinite().all()
        assert router.noise_weight.grad.isfinite().all()

    def test_all_chosen_has_no_load(self):
        assert self.router(k=4)(torch.randn(3, 6)).load_TE is None

    def test_the_weights_start_at_zero_and_can_be_reset_to_it(self):
        router = NoisyTopK(6, 4)
        assert not router.weight.any()
        assert not router.noise_weight.any()
        nn.init.normal_(router.noise_weight)
        nn.init.normal_(router.weight)
        router.reset_parameters()
        assert not router.weight.any()
        assert not router.noise_weight.any()

    def test_noise_is_drawn_in_fp32_in_a_bf16_model_and_under_autocast(self):
        router = self.router().bfloat16()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            routing = router(torch.randn(3, 6).bfloat16())
        assert {routing.logits_TE.dtype, routing.weight_N.dtype, routing.load_TE.dtype} == {torch.float32}


class TestFused:
    @pytest.mark.parametrize("options", [{}, {"order": "softmax_topk"}, {"order": "softmax_topk", "renormalize": True}])
    def test_the_kernel_for_gpus_routes_and_teaches_alike(self, options, monkeypatch):
        router, x = TopK(16, 12, 3, init_std=1.0, **options), torch.randn(40, 16)
        grads = torch.randn(120), torch.randn(40, 12)

        def results():
            routing = router(x)
            grad = torch.autograd.grad((routing.weight_N, routing.probs_TE), router.weight, grads)[0]
            return routing.expert_N, routing.weight_N.detach(), routing.probs_TE.detach(), grad

        expected = results()
        monkeypatch.setattr(topk, "can_fuse_router", lambda logits, k: True)
        for got, value in zip(results(), expected, strict=True):
            torch.testing.assert_close(got, value)

    def test_a_replay_decides_and_the_weights_follow_it(self, monkeypatch):
        router, x = TopK(16, 12, 2, init_std=1.0), torch.randn(5, 16)
        other = torch.stack([torch.randperm(12)[:2] for _ in range(5)])
        monkeypatch.setattr(router, "decide", lambda choose, num_tokens: other)
        expected = router(x)
        monkeypatch.setattr(topk, "can_fuse_router", lambda logits, k: True)
        got = router(x)
        assert torch.equal(got.expert_N, other.flatten())
        torch.testing.assert_close(got.weight_N, expected.weight_N)
