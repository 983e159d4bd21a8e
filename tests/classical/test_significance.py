"""Tests of significance against hand-computed figures and against what they promise under no difference."""

import numpy as np
import pytest
from scipy import stats
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.metrics import accuracy_score
from sklearn.model_selection import KFold, StratifiedKFold

from mixtura.classical import five_by_two, mcnemar, paired_t
from mixtura.errors import UserError


def _labels(n_samples=200, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n_samples, 2))
    return X, (X[:, 0] + 0.5 * rng.normal(size=n_samples) > 0).astype(int)


def test_five_by_two_is_the_formula_of_alpaydin():
    X, y = _labels()
    first, second = LogisticRegression(), DummyClassifier()
    rng, differences = np.random.RandomState(3), np.empty((5, 2))
    for i in range(5):
        for j, (train, test) in enumerate(StratifiedKFold(2, shuffle=True, random_state=rng).split(X, y)):
            scores = [accuracy_score(y[test], m.fit(X[train], y[train]).predict(X[test])) for m in (first, second)]
            differences[i, j] = scores[0] - scores[1]
    variances = ((differences - differences.mean(axis=1, keepdims=True)) ** 2).sum(axis=1)
    f = (differences**2).sum() / (2 * variances.sum())
    found = five_by_two(first, second, X, y=y, random_state=3)
    assert found.statistic == pytest.approx(f)
    assert found.p_value == pytest.approx(stats.f.sf(f, 10, 5))
    assert found.difference == pytest.approx(differences.mean())
    assert found.significant()


def test_paired_t_is_corrected_for_shared_rows():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(100, 1))
    y = X[:, 0] + rng.normal(size=100)
    folds = KFold(5, shuffle=True, random_state=0)
    found = paired_t(LinearRegression(), DummyRegressor(), X, y=y, cv=folds)
    differences = np.array(
        [
            LinearRegression().fit(X[a], y[a]).score(X[b], y[b]) - DummyRegressor().fit(X[a], y[a]).score(X[b], y[b])
            for a, b in folds.split(X)
        ]
    )
    t = differences.mean() / np.sqrt((1 / 5 + 20 / 80) * differences.var(ddof=1))
    assert found.statistic == pytest.approx(t)
    assert found.p_value == pytest.approx(2 * stats.t.sf(abs(t), 4))


def test_equal_estimators_are_not_told_apart():
    X, y = _labels()
    for test in (five_by_two, paired_t):
        found = test(LogisticRegression(), LogisticRegression(), X, y=y)
        assert (found.difference, found.statistic, found.p_value) == (0.0, 0.0, 1.0)


def test_mcnemar_by_hand():
    truth = np.ones(100, dtype=int)
    first, second = truth.copy(), truth.copy()
    first[:6], second[6:20] = 0, 0
    exact = mcnemar(truth, first, second)
    assert exact.p_value == pytest.approx(2 * stats.binom.cdf(6, 20, 0.5))
    assert exact.difference == pytest.approx(0.08)
    first[:10], second[10:50] = 0, 0
    second[:10] = 1
    large = mcnemar(truth, first, second)
    wins, losses = ((first == 1) & (second == 0)).sum(), ((first == 0) & (second == 1)).sum()
    assert large.statistic == pytest.approx((abs(wins - losses) - 1) ** 2 / (wins + losses))
    assert large.p_value == pytest.approx(stats.chi2.sf(large.statistic, 1))
    assert mcnemar(truth, truth, truth).p_value == 1.0


def test_pure_chance_is_significant_in_about_its_share():
    rng = np.random.default_rng(0)
    p = [mcnemar(*rng.integers(0, 2, size=(2, 300)), second=rng.integers(0, 2, size=300)).p_value for _ in range(400)]
    assert 0.02 < np.mean(np.array(p) < 0.05) < 0.08


def test_bad_input_is_refused():
    with pytest.raises(UserError, match="one shape"):
        mcnemar([1, 2], [1], [1, 2])
    one = [(np.arange(2), np.array([2, 3]))]
    with pytest.raises(UserError, match="at least 2 folds"):
        paired_t(LinearRegression(), DummyRegressor(), np.eye(4), y=np.arange(4.0), cv=one)
