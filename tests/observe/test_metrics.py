import math

import numpy as np
import pytest
import torch

from mixtura.errors import UserError
from mixtura.observe import metrics


@pytest.mark.parametrize(
    "make", [list, torch.tensor, np.array, lambda values: torch.tensor(values, dtype=torch.bfloat16)]
)
def test_any_array_gives_the_same_numbers(make):
    counts = make([6, 2, 0, 0])
    assert metrics.load_share(counts).tolist() == [0.75, 0.25, 0.0, 0.0]
    assert metrics.imbalance(counts).item() == 3.0
    # mean 2, deviations 4, 0, -2, -2: variance 24 / 4 = 6
    assert metrics.coefficient_of_variation(counts).item() == pytest.approx(math.sqrt(6) / 2)
    assert metrics.dead_share(counts).item() == 0.5


def test_one_row_per_step_gives_one_number_per_step():
    counts = [[1, 1], [3, 1], [4, 0]]
    assert metrics.imbalance(counts).tolist() == [1.0, 1.5, 2.0]
    assert metrics.dead_share(counts).tolist() == [0.0, 0.0, 0.5]
    assert metrics.coefficient_of_variation(counts).tolist() == [0.0, 0.5, 1.0]


def test_one_expert_is_always_balanced():
    assert metrics.imbalance([5]).item() == 1.0
    assert metrics.coefficient_of_variation([5]).item() == 0.0


def test_entropy_is_the_mean_over_tokens():
    assert metrics.entropy([[0.25] * 4, [1, 0, 0, 0]]) == pytest.approx(math.log(4) / 2)


def test_dropped_share():
    assert metrics.dropped_share(100, 100) == 0.0
    assert metrics.dropped_share(0, 8) == 1.0


def test_specialisation_against_hand_computed_lift():
    # P(domain) = 1/4, 3/4; expert 0 sees domain 0 half of the time, expert 1 never
    lift = metrics.specialisation([[2, 0, 0], [2, 4, 0]])
    torch.testing.assert_close(lift[:, :2], torch.tensor([[2.0, 0.0], [2 / 3, 4 / 3]], dtype=torch.float64))
    assert lift[:, 2].isnan().all()


def test_mutual_information_against_hand_computed_sum():
    counts = [[2, 0], [2, 4]]
    expected = (2 / 8) * math.log(2) + (2 / 8) * math.log(2 / 3) + (4 / 8) * math.log(4 / 3)
    doubt = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert metrics.mutual_information(counts) == pytest.approx(expected)
    assert metrics.normalised_mutual_information(counts) == pytest.approx(expected / doubt)


def test_mutual_information_of_one_domain_or_no_preference_is_zero():
    assert metrics.mutual_information([[1, 2, 3]]) == pytest.approx(0, abs=1e-15)
    assert metrics.normalised_mutual_information([[1, 2, 3]]) == 0.0
    assert metrics.mutual_information([[1, 2, 0], [2, 4, 0]]) == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize(
    ("function", "value", "message"),
    [
        (metrics.load_share, [0, 0], "only zeros"),
        (metrics.load_share, [], "at least one expert"),
        (metrics.imbalance, [1, -1], "negative"),
        (metrics.imbalance, [1, math.nan], "non-finite"),
        (metrics.dead_share, [[1], [1, 2]], "rows of one length"),
        (metrics.dead_share, 3, "at least one expert"),
        (metrics.entropy, [[0.5, 0.2]], "sum to 1"),
        (metrics.entropy, [0.5, 0.5], "shape"),
        (metrics.specialisation, [1, 2], "matrix"),
        (metrics.mutual_information, [[0, 0]], "matrix"),
    ],
)
def test_bad_input_is_named(function, value, message):
    with pytest.raises(UserError, match=message):
        function(value)


@pytest.mark.parametrize(("kept", "total"), [(1, 0), (-1, 4), (5, 4), (math.nan, 4)])
def test_dropped_share_rejects_impossible_counts(kept, total):
    with pytest.raises(UserError, match="kept"):
        metrics.dropped_share(kept, total)
