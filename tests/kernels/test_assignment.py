"""Balanced assignments: plans computed by hand, the auction against the Hungarian method."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from mixtura.kernels import assignment
from mixtura.kernels.assignment import auction, balancing_prices, even_capacity


def plan(score, **options):
    return (score - balancing_prices(score, **options)).softmax(-1)


class TestBalancingPrices:
    def test_two_by_two_by_hand(self):
        # P = [[p, 1-p], [1-p, p]] with p^2 / (1-p)^2 = 4 * 1 / (1 * 1), so that p = 2/3.
        score = torch.tensor([[4.0, 1.0], [1.0, 1.0]]).log()
        torch.testing.assert_close(plan(score, iterations=30), torch.tensor([[2.0, 1.0], [1.0, 2.0]]) / 3)

    def test_one_iteration_by_hand(self):
        # Rows of exp(score) over their sums: (4, 1) / 5 and (1, 1) / 2, whose columns sum to 1.3 and 0.7.
        score = torch.tensor([[4.0, 1.0], [1.0, 1.0]]).log()
        expected = torch.tensor([[4 / 1.3, 1 / 0.7], [1 / 1.3, 1 / 0.7]])
        expected = expected / expected.sum(-1, keepdim=True)
        torch.testing.assert_close(plan(score, iterations=1), expected)

    def test_scores_of_rank_one_give_the_even_plan(self):
        score = torch.randn(7, 1) + torch.tensor([[5.0, -3.0, 0.0]])
        torch.testing.assert_close(plan(score, iterations=2), torch.full((7, 3), 1 / 3))

    def test_columns_become_equal_where_rows_are_not_alike(self):
        score = 2 * torch.randn(50, 6) + 3 * torch.randn(6)
        torch.testing.assert_close(plan(score, iterations=100).sum(0), torch.full((6,), 50 / 6), rtol=1e-3, atol=0)

    def test_rows_behind_the_mask_do_not_count(self):
        score, mask = torch.randn(9, 3), torch.tensor([True, False, True] * 3)
        torch.testing.assert_close(
            balancing_prices(score, iterations=5, mask_T=mask), balancing_prices(score[mask], iterations=5)
        )

    @pytest.mark.parametrize("score", [torch.zeros(0, 3), torch.tensor([[300.0, -300.0]] * 4)])
    def test_empty_and_far_apart_scores_stay_finite(self, score):
        assert balancing_prices(score, iterations=20).isfinite().all()

    def test_all_padding_stays_finite(self):
        assert (
            balancing_prices(torch.randn(4, 3), iterations=9, mask_T=torch.zeros(4, dtype=torch.bool)).isfinite().all()
        )

    def test_a_temperature_scales_scores_and_prices(self):
        score = torch.randn(20, 4)
        prices = balancing_prices(score, iterations=9, temperature=0.5)
        torch.testing.assert_close(prices, 0.5 * balancing_prices(2 * score, iterations=9))


def best_total(score, capacity):
    """By the Hungarian method, with a column for every row that an expert takes."""
    columns = np.repeat(np.arange(len(capacity)), capacity)
    rows, chosen = linear_sum_assignment(score[:, columns], maximize=True)
    return score[rows, columns[chosen]].sum()


def test_even_capacities_differ_by_one_and_favour_the_dear():
    assert even_capacity(torch.tensor([0.0, 2.0, 1.0]), 7).tolist() == [2, 3, 2]
    assert even_capacity(torch.tensor([0.0, 2.0, 1.0]), torch.tensor(2)).tolist() == [0, 1, 1]
    assert even_capacity(torch.tensor([5.0]), 4).tolist() == [4]


class TestAuction:
    def test_by_hand(self):
        # Everybody prefers expert 0; the two with the most to lose get it.
        scores = torch.tensor([[9.0, 8.0], [9.0, 1.0], [5.0, 0.0], [5.0, 4.0]])
        assert auction(scores, torch.tensor([2, 2]), price_E=torch.zeros(2), epsilon=0.1).tolist() == [1, 0, 0, 1]

    @pytest.mark.parametrize("warm", [True, False])
    @given(
        st.integers(1, 40),
        st.integers(1, 6),
        st.integers(0, 2**20),
        st.sampled_from([0.5, 0.05]),
        st.sampled_from([0, 4]),
    )
    @settings(max_examples=60)
    def test_within_epsilon_of_the_hungarian_method(self, warm, tokens, experts, seed, epsilon, skew):
        generator = torch.Generator().manual_seed(seed)
        score = torch.randn(tokens, experts, generator=generator) + skew * torch.randn(experts, generator=generator)
        price = balancing_prices(score, iterations=16) if warm else torch.zeros(experts)
        capacity = even_capacity(price, tokens)
        expert = auction(score, capacity, price_E=price, epsilon=epsilon, rounds=5000)
        assert torch.equal(torch.bincount(expert, minlength=experts), capacity)
        total = score.double().gather(1, expert.unsqueeze(1)).sum().item()
        assert total >= best_total(score.double().numpy(), capacity.numpy()) - tokens * epsilon - 1e-4

    def test_equal_rows_are_spread(self):
        score = torch.randn(1, 4).expand(12, 4)
        expert = auction(score, torch.full((4,), 3), price_E=torch.zeros(4), epsilon=0.1, rounds=500)
        assert torch.bincount(expert).tolist() == [3, 3, 3, 3]

    @pytest.mark.parametrize("looks", [True, False])
    @pytest.mark.parametrize("rounds", [1, 2, 64])
    def test_what_the_rounds_leave_is_placed_all_the_same(self, rounds, looks, monkeypatch):
        monkeypatch.setattr(assignment, "may_look", lambda x: looks)
        score = torch.randn(30, 1) + torch.tensor([3.0, 2.0, 1.0])
        expert = auction(score, torch.full((3,), 10), price_E=torch.zeros(3), epsilon=1e-3, rounds=rounds)
        assert torch.bincount(expert).tolist() == [10, 10, 10]

    def test_rows_behind_the_mask_take_no_place(self):
        score, mask = torch.randn(12, 3), torch.tensor([True, True, False] * 4)
        prices = torch.zeros(3)
        expert = auction(score, torch.tensor([3, 3, 2]), price_E=prices, epsilon=0.05, mask_T=mask, rounds=500)
        alone = auction(score[mask], torch.tensor([3, 3, 2]), price_E=prices, epsilon=0.05, rounds=500)
        assert torch.bincount(expert[mask]).tolist() == [3, 3, 2]
        totals = [s.gather(1, e.unsqueeze(1)).sum() for s, e in ((score[mask], expert[mask]), (score[mask], alone))]
        assert abs(totals[0] - totals[1]) <= 8 * 0.05

    def test_an_expert_without_room_gets_nothing(self):
        score = torch.tensor([[9.0, 1.0, 0.0], [8.0, 1.0, 2.0]])
        assert auction(score, torch.tensor([0, 1, 1]), price_E=torch.zeros(3), epsilon=0.1).tolist() == [1, 2]

    @pytest.mark.parametrize("shape", [(0, 3), (4, 1), (0, 1)])
    def test_no_rows_and_one_expert(self, shape):
        T, E = shape
        expert = auction(torch.randn(shape), torch.full((E,), T), price_E=torch.zeros(E), epsilon=0.1)
        assert expert.tolist() == [0] * T

    def test_nan_stays_within_the_experts(self):
        score = torch.randn(8, 4)
        score[3] = torch.nan
        expert = auction(score, torch.full((4,), 2), price_E=torch.zeros(4), epsilon=0.1)
        assert ((expert >= 0) & (expert < 4)).all()

    def test_unwritten_memory_is_not_read(self, poison):
        scores = torch.tensor([[9.0, 8.0], [9.0, 1.0], [5.0, 0.0], [5.0, 4.0]])
        assert auction(scores, torch.tensor([2, 2]), price_E=torch.zeros(2), epsilon=0.1).tolist() == [1, 0, 0, 1]
