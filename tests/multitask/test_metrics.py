"""AUC against counting pairs, and scikit-learn's."""

import math

import pytest
import torch

from mixtura.multitask import auc


@pytest.mark.parametrize("levels", [3, 1000])
def test_it_counts_pairs(levels):
    generator = torch.Generator().manual_seed(levels)
    score = torch.randint(levels, (200,), generator=generator).float()
    label = (torch.rand(200, generator=generator) < 0.3).float()
    label[::7] = torch.nan
    ones, zeros = score[label == 1], score[label == 0]
    pairs = (ones[:, None] > zeros).double() + 0.5 * (ones[:, None] == zeros)
    assert auc(score, label) == pytest.approx(pairs.mean().item())
    metrics = pytest.importorskip("sklearn.metrics", reason="its own AUC is a second opinion")
    known = ~label.isnan()
    assert auc(score, label) == pytest.approx(metrics.roc_auc_score(label[known], score[known]))


def test_one_class_has_no_auc():
    assert math.isnan(auc(torch.zeros(2), torch.ones(2)))
    assert math.isnan(auc(torch.zeros(2), torch.full((2,), torch.nan)))
