import math
import random
from statistics import median

import pytest
import torch

from mixtura.observe.series import columns, even, extremes, running_median


@pytest.mark.parametrize(("length", "limit"), [(1, 5), (5, 5), (100_000, 1500), (7, 1), (10, 9)])
def test_even_keeps_both_ends_and_the_limit(length, limit):
    kept = even(length, limit)
    assert len(kept) == min(length, limit)
    assert kept[0] == 0
    assert limit == 1 or kept[-1] == length - 1


def test_extremes_keep_a_single_spike_and_a_single_gap():
    values = [1.0] * 10_000
    values[4321], values[8765] = 50.0, math.nan
    kept = extremes(values, 100)
    assert len(kept) <= 100
    assert {4321, 8765} <= set(kept)


@pytest.mark.parametrize("window", [1, 2, 7, 50])
def test_running_median_is_the_median_of_each_window(window):
    draw = random.Random(0)
    values = [draw.random() for _ in range(40)]
    half = window // 2
    expected = [median(values[max(0, i - half) : i + half + 1]) for i in range(40)]
    assert running_median(values, window) == pytest.approx(expected)


def test_running_median_leaves_gaps_where_they_are():
    smooth = running_median([1.0, math.nan, 3.0], 3)
    assert smooth[0] == 1.0
    assert math.isnan(smooth[1])
    assert smooth[2] == 3.0


def test_columns_are_means_and_skip_gaps():
    values = torch.tensor([[1.0, 0.0], [3.0, math.nan], [5.0, math.nan], [math.nan, math.nan]])
    steps, table = columns((10, 20, 30, 40), values, 2)
    assert steps == [20, 40]
    assert table[0].tolist() == [2.0, 5.0]
    assert table[1, 0] == 0.0
    assert math.isnan(table[1, 1])
