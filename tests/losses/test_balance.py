"""Losses of a routing: values computed by hand, the load against draws, masks, null experts, slots, gradients."""

import dataclasses
import math

import pytest
import torch
from torch import nn

import mixtura as mx
from mixtura.losses.balance import (
    LOSSES,
    entropy,
    global_load_balance,
    gshard,
    importance,
    load,
    load_balance,
    sequence_load_balance,
    z_loss,
)
from mixtura.routers import NoisyTopK
from mixtura.routing import SlotRouting
from tests.routings import make_routing

THREE = [[0.6, 0.3, 0.1], [0.4, 0.5, 0.1], [0.5, 0.1, 0.4]]


class TestLoadBalance:
    @pytest.mark.parametrize("k", [1, 2, 4])
    def test_uniform_is_one(self, k):
        choices = [[(t + i) % 4 for i in range(k)] for t in range(8)]
        assert load_balance(make_routing(choices, num_experts=4)).item() == pytest.approx(1)

    def test_collapsed_is_the_number_of_experts(self):
        routing = make_routing([[2]] * 5, num_experts=4, probs=[[0.0, 0.0, 1.0, 0.0]] * 5)
        assert load_balance(routing).item() == pytest.approx(4)

    def test_by_hand_with_two_choices(self):
        # c = (3, 2, 1) of N = 6, mean p = (0.5, 0.3, 0.2): 3 * (3/6 * 0.5 + 2/6 * 0.3 + 1/6 * 0.2)
        probs = [[0.6, 0.3, 0.1], [0.4, 0.5, 0.1], [0.5, 0.1, 0.4]]
        routing = make_routing([[0, 1], [1, 0], [0, 2]], num_experts=3, probs=probs)
        assert load_balance(routing).item() == pytest.approx(3 * (0.25 + 0.1 + 0.2 / 6))

    def test_padding_counts_neither_in_c_nor_in_p(self):
        probs = [[0.9, 0.1], [0.2, 0.8], [0.4, 0.6]]
        padded = make_routing([[0], [1], [1]], num_experts=2, probs=probs, mask=[True, True, False])
        short = make_routing([[0], [1]], num_experts=2, probs=probs[:2])
        assert load_balance(padded).item() == pytest.approx(load_balance(short).item())

    def test_one_expert_and_all_chosen_are_one(self):
        assert load_balance(make_routing([[0]] * 3, num_experts=1)).item() == pytest.approx(1)
        probs = [[0.7, 0.2, 0.1]] * 4
        everyone = make_routing([[0, 1, 2]] * 4, num_experts=3, probs=probs)
        assert load_balance(everyone).item() == pytest.approx(1)

    def test_the_gradient_comes_through_p_alone_and_pulls_towards_the_idle_expert(self):
        logits = torch.zeros(4, 2, requires_grad=True)
        expert_TK = torch.tensor([[0], [0], [0], [1]])
        routing = mx.Routing.from_choices(expert_TK, torch.ones(4, 1), logits_TE=logits, probs_TE=logits.softmax(-1))
        load_balance(routing).backward()
        # d/dl of 2 * (3/4 p0 + 1/4 p1) / 4 at p = 1/2: +-(2 / 4) * (3/4 - 1/4) * p0 p1
        torch.testing.assert_close(logits.grad, torch.tensor([[0.0625, -0.0625]]).expand(4, 2))


class TestZ:
    def test_by_hand(self):
        routing = make_routing([[0], [0]], num_experts=2, logits=[[0.0, 0.0], [1.0, 1.0]])
        expected = (math.log(2) ** 2 + (1 + math.log(2)) ** 2) / 2
        assert z_loss(routing).item() == pytest.approx(expected)

    def test_padding_does_not_count(self):
        routing = make_routing([[0], [0]], num_experts=2, logits=[[0.0, 0.0], [9.0, 9.0]], mask=[True, False])
        assert z_loss(routing).item() == pytest.approx(math.log(2) ** 2)


class TestImportance:
    def test_by_hand(self):
        # sums (0.9, 0.5, 0.6): mean 2/3, population variance (0.0544 + 0.0278 + 0.0044) / 3
        routing = make_routing([[0, 1], [2, 0]], num_experts=3, weights=[[0.5, 0.5], [0.6, 0.4]])
        sums = torch.tensor([0.9, 0.5, 0.6], dtype=torch.float64)
        expected = (sums - sums.mean()).square().mean() / sums.mean().square()
        assert importance(routing).item() == pytest.approx(expected.item(), rel=1e-5)

    def test_balanced_is_zero_collapsed_is_e_minus_one(self):
        assert importance(make_routing([[0], [1], [2]], num_experts=3)).item() == 0
        assert importance(make_routing([[1]] * 3, num_experts=3)).item() == pytest.approx(2)

    def test_padding_does_not_count(self):
        routing = make_routing([[0], [1], [1]], num_experts=2, mask=[True, True, False])
        assert importance(routing).item() == 0

    def test_different_numbers_of_choices(self):
        routing = make_routing([[0, 1], [], [1]], num_experts=2, weights=[[0.5, 0.25], [], [0.25]], regular=False)
        assert importance(routing).item() == 0


class TestLoad:
    def test_without_noise_it_is_cv_squared_of_the_counts(self):
        assert load(make_routing([[0], [0], [0], [1]], num_experts=2)).item() == pytest.approx(0.25)

    def test_with_noise_it_sums_the_probabilities(self):
        smooth = torch.tensor([[0.9, 0.3], [0.6, 0.2]])
        routing = make_routing([[0], [0]], num_experts=2, load=smooth)
        assert load(routing).item() == pytest.approx((0.5 / 1.0) ** 2)
        masked = make_routing([[0], [0]], num_experts=2, load=smooth, mask=[True, False])
        assert load(masked).item() == pytest.approx((0.3 / 0.6) ** 2)

    @pytest.mark.parametrize("k", [1, 2, 3])
    def test_the_probability_is_how_often_fresh_noise_for_that_expert_chooses_it(self, k):
        torch.manual_seed(1)
        router = NoisyTopK(4, num_experts=4, k=k, init_std=0.5)
        nn.init.normal_(router.noise_weight, std=0.5)
        x_TD = torch.randn(3, 4)
        state = torch.get_rng_state()
        routing = router(x_TD)
        torch.set_rng_state(state)
        clean_TE = x_TD @ router.weight.T
        std_TE = nn.functional.softplus(x_TD @ router.noise_weight.T) + 1e-2
        noisy_TE = clean_TE + torch.randn(3, 4) * std_TE  # what the router drew
        assert torch.equal(noisy_TE.topk(k).indices.flatten(), routing.expert_N)
        draws = 20_000
        for e in range(4):
            again_RTE = noisy_TE.expand(draws, 3, 4).clone()
            again_RTE[:, :, e] = clean_TE[:, e] + torch.randn(draws, 3) * std_TE[:, e]
            frequency_T = (again_RTE.topk(k).indices == e).any(-1).float().mean(0)
            torch.testing.assert_close(routing.load_TE[:, e].detach(), frequency_T.detach(), atol=0.015, rtol=0)

    def test_its_gradient_reaches_both_matrices(self):
        router = NoisyTopK(4, num_experts=3, k=1, init_std=0.5)
        load(router(torch.randn(6, 4))).backward()
        assert router.weight.grad.norm() > 0
        assert router.noise_weight.grad.norm() > 0


class TestSequenceLoadBalance:
    def routing(self, sequences, **options):
        probs = [[0.7, 0.3], [0.6, 0.4], [0.2, 0.8], [0.4, 0.6]]
        routing = make_routing([[0], [0], [1], [0]], num_experts=2, probs=probs, **options)
        return dataclasses.replace(routing, sequences=sequences)

    def test_by_hand(self):
        # First sequence: c = (2, 0), mean p0 = 0.65; second: c = (1, 1), mean p = (0.3, 0.7).
        expected = (2 * 0.65 + 2 * (0.5 * 0.3 + 0.5 * 0.7)) / 2
        assert sequence_load_balance(self.routing(2)).item() == pytest.approx(expected)
        assert sequence_load_balance(self.routing(1)).item() == pytest.approx(load_balance(self.routing(1)).item())

    def test_it_is_the_mean_of_load_balance_over_the_sequences(self):
        layer = mx.MoEConfig(dim=4, hidden=4, num_experts=5, k=2, losses={"sequence_load_balance": 1.0}).build()
        nn.init.normal_(layer.router.weight)
        x = torch.randn(2, 3, 7, 4)
        with mx.collect_losses(layer) as losses:
            layer(x)
        each = [load_balance(layer.router(row)) for row in x.flatten(0, 1)]
        torch.testing.assert_close(losses.total(), torch.stack(each).mean())

    def test_padding_and_empty_sequences_do_not_count(self):
        padded = self.routing(2, mask=[True, False, False, False])
        assert sequence_load_balance(padded).item() == pytest.approx(2 * 0.7)

    def test_choices_that_were_given_up_and_null_experts(self):
        # Experts 0 and 1, null expert 2; the first sequence chose (0, none), (2, 0), the second (1, 2), (none, none).
        probs = [[0.5, 0.3, 0.2], [0.4, 0.2, 0.4], [0.1, 0.8, 0.1], [0.2, 0.3, 0.5]]
        routing = make_routing([[0, -1], [2, 0], [1, 2], [-1, -1]], num_experts=3, probs=probs)
        routing = dataclasses.replace(routing, null_experts=1, partial=True, sequences=2)
        first = 3 * (2 / 3 * 0.45 + 1 / 3 * 0.3)
        second = 3 * (1 / 2 * 0.55 + 1 / 2 * 0.3)
        assert sequence_load_balance(routing).item() == pytest.approx((first + second) / 2)
        # All of it: c = (2, 1, 2) of 5, mean p = (0.3, 0.4, 0.3).
        assert load_balance(routing).item() == pytest.approx(3 * (0.4 * 0.3 + 0.2 * 0.4 + 0.4 * 0.3))

    def test_the_gradient_stays_inside_the_sequence(self):
        logits = torch.zeros(4, 2, requires_grad=True)
        expert_TK = torch.tensor([[0], [1], [0], [0]])
        routing = mx.Routing.from_choices(expert_TK, torch.ones(4, 1), logits_TE=logits, probs_TE=logits.softmax(-1))
        sequence_load_balance(dataclasses.replace(routing, sequences=2)).backward()
        # The balanced sequence pulls nowhere; the other like load_balance with c = (2, 0), halved by the mean over two.
        torch.testing.assert_close(logits.grad, torch.tensor([[0.0, 0.0]] * 2 + [[0.125, -0.125]] * 2))


class TestGlobalLoadBalance:
    def test_without_a_process_group_it_is_the_plain_one(self):
        routing = make_routing([[0, 1], [1, 2]], num_experts=3, probs=[[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]])
        assert global_load_balance(routing).item() == load_balance(routing).item()

    def test_the_counts_are_those_of_all_ranks_and_the_probabilities_stay(self, monkeypatch):
        monkeypatch.setattr("mixtura.losses.balance.sum_over_ranks", lambda counts: counts + torch.tensor([0, 5]))
        routing = make_routing([[0], [0], [1]], num_experts=2, probs=[[0.9, 0.1], [0.6, 0.4], [0.3, 0.7]])
        assert global_load_balance(routing).item() == pytest.approx(2 * (2 / 8 * 0.6 + 6 / 8 * 0.4))


class TestGShard:
    def test_by_hand_only_first_choices_count(self):
        # c = (2, 1, 0) of T = 3, m = (0.5, 0.3, 0.2): mean_e(c_e / T * m_e) * E^2
        routing = make_routing([[0, 1], [1, 0], [0, 2]], num_experts=3, probs=THREE)
        assert gshard(routing).item() == pytest.approx((2 / 3 * 0.5 + 1 / 3 * 0.3) / 3 * 9)

    def test_with_one_choice_it_is_load_balance(self):
        routing = make_routing([[0], [1], [0]], num_experts=3, probs=THREE)
        assert gshard(routing).item() == pytest.approx(load_balance(routing).item())

    def test_without_a_fixed_number_of_choices_the_likeliest_is_first(self):
        routing = make_routing([[1, 0], [1], [2, 0]], num_experts=3, probs=THREE, regular=False)
        assert gshard(routing).item() == pytest.approx(3 * (2 / 3 * 0.5 + 1 / 3 * 0.3))

    def test_a_first_choice_that_was_given_up_does_not_count(self):
        routing = make_routing([[0, 1], [-1, 0], [0, 2]], num_experts=3, probs=THREE)
        assert gshard(dataclasses.replace(routing, partial=True)).item() == pytest.approx(3 * 0.5)


class TestEntropy:
    def test_by_hand(self):
        routing = make_routing([[0]] * 3, num_experts=2, probs=[[0.5, 0.5], [1.0, 0.0], [0.9, 0.1]])
        expected = (math.log(2) + 0 - 0.9 * math.log(0.9) - 0.1 * math.log(0.1)) / 3
        assert entropy(routing).item() == pytest.approx(expected)

    def test_a_positive_coefficient_sharpens(self):
        logits = torch.tensor([[1.0, 0.0]], requires_grad=True)
        expert_TK = torch.tensor([[0]])
        routing = mx.Routing.from_choices(expert_TK, torch.ones(1, 1), logits_TE=logits, probs_TE=logits.softmax(-1))
        entropy(routing).backward()
        assert logits.grad[0, 0] < 0 < logits.grad[0, 1]  # descent widens the gap

    def test_certainty_has_a_finite_gradient(self):
        logits = torch.tensor([[200.0, 0.0]], requires_grad=True)
        expert_TK = torch.tensor([[0]])
        routing = mx.Routing.from_choices(expert_TK, torch.ones(1, 1), logits_TE=logits, probs_TE=logits.softmax(-1))
        entropy(routing).backward()
        assert not logits.grad.any()


@pytest.mark.parametrize("name", ["importance", "load"])
def test_one_expert_has_nothing_to_balance(name):
    assert LOSSES[name](make_routing([[0]] * 3, num_experts=1)).item() == 0


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("mask", [None, [False, False]])
def test_without_real_tokens_every_loss_is_zero(name, mask):
    probs = [[0.5, 0.5]] * 2 if mask else torch.zeros(0, 2).tolist()
    choices = [[0], [1]] if mask else []
    logits = torch.zeros(len(choices), 2)
    routing = dataclasses.replace(
        make_routing(choices, num_experts=2, mask=mask), logits_TE=logits, probs_TE=torch.tensor(probs).view(-1, 2)
    )
    assert LOSSES[name](routing).item() == 0


def random_routing(**options):
    """Three sequences of four tokens, five experts and a null one, choices given up here and there."""
    logits = torch.randn(12, 6, requires_grad=True)
    probs_TE = logits.softmax(-1)
    chosen = probs_TE.topk(3)
    expert_TK = chosen.indices.masked_fill(torch.rand(12, 3) < 0.2, -1)
    routing = mx.Routing.from_choices(
        expert_TK, chosen.values, logits_TE=logits, probs_TE=probs_TE, partial=True, load_TE=probs_TE**2
    )
    return dataclasses.replace(routing, null_experts=1, sequences=3, **options), logits


@pytest.mark.parametrize("name", LOSSES)
def test_a_mask_is_the_removal_of_its_tokens(name):
    """The last token of each sequence is padding, so that what is left are three equal sequences again."""
    is_real_T = torch.tensor([True, True, True, False] * 3)
    routing, logits = random_routing()
    masked = dataclasses.replace(routing, mask_T=is_real_T)
    is_real_N = is_real_T[routing.token_N]
    removed = dataclasses.replace(
        routing,
        token_N=torch.arange(9).repeat_interleave(3),
        expert_N=routing.expert_N[is_real_N],
        weight_N=routing.weight_N[is_real_N],
        logits_TE=routing.logits_TE[is_real_T],
        probs_TE=routing.probs_TE[is_real_T],
        load_TE=routing.load_TE[is_real_T],
    )
    values = [LOSSES[name](each) for each in (masked, removed)]
    torch.testing.assert_close(*values)
    torch.testing.assert_close(*(torch.autograd.grad(value, logits, retain_graph=True)[0] for value in values))
    assert not torch.isclose(values[0], LOSSES[name](routing))


@pytest.mark.parametrize("name", LOSSES)
def test_padding_may_hold_anything(name):
    is_real_T = torch.tensor([True, True, False, False] * 3)
    routing, _ = random_routing(mask_T=is_real_T)
    poisoned = {field: getattr(routing, field).detach().clone() for field in ("logits_TE", "probs_TE", "load_TE")}
    for values in poisoned.values():
        values[~is_real_T] = torch.nan
    torch.testing.assert_close(LOSSES[name](dataclasses.replace(routing, **poisoned)), LOSSES[name](routing))


@pytest.mark.parametrize("name", LOSSES)
def test_the_gradient_is_that_of_finite_differences(name):
    routing, _ = random_routing()
    weight_TK = routing.weight_N.detach()

    def value(logits):
        probs_TE = logits.softmax(-1)
        weight_N = weight_TK.double() * probs_TE.flatten()[: len(weight_TK)]
        return LOSSES[name](
            dataclasses.replace(routing, logits_TE=logits, probs_TE=probs_TE, load_TE=probs_TE**2, weight_N=weight_N)
        )

    assert torch.autograd.gradcheck(value, torch.randn(12, 6, dtype=torch.float64, requires_grad=True))


@pytest.mark.parametrize("name", LOSSES)
def test_slots_are_balanced_by_construction(name):
    logits_TS = torch.randn(6, 4)
    routing = SlotRouting.from_slots(logits_TS.softmax(0), logits_TS.softmax(1), num_experts=2)
    routing = dataclasses.replace(routing, sequences=2)
    value = LOSSES[name](routing).item()
    exact = {"load_balance": 1, "sequence_load_balance": 1, "global_load_balance": 1, "importance": 0, "load": 0}
    if name in exact:
        assert value == pytest.approx(exact[name], abs=1e-6)
    masked = dataclasses.replace(routing, mask_T=torch.tensor([True] * 5 + [False]))
    assert math.isfinite(LOSSES[name](masked).item())
