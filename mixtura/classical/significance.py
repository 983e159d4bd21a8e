"""Is the mixture better than one expert? Tests that compare two estimators or two finished classifiers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from sklearn.base import BaseEstimator, clone, is_classifier
from sklearn.metrics import check_scoring
from sklearn.model_selection import KFold, StratifiedKFold, check_cv
from sklearn.utils import _safe_indexing, check_random_state

from mixtura.classical.columns import Array
from mixtura.errors import UserError

Scorer = Callable[[Any, Any, Any], float] | str | None
# With fewer rows on which just one of two classifiers is right, the binomial distribution is summed exactly.
EXACT_BELOW = 25


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The outcome of a test: how much better the first is, in units of the score, and how surprising by chance alone.

    Example:
        >>> Comparison(difference=0.1, statistic=5.0, p_value=0.04).significant()
        True
    """

    difference: float
    statistic: float
    p_value: float

    def significant(self, level: float = 0.05) -> bool:
        """Whether the difference is significant at a level."""
        return self.p_value < level


def five_by_two(
    first: BaseEstimator, second: BaseEstimator, X: Any, *, y: Any, scoring: Scorer = None, random_state: Any = None
) -> Comparison:
    """Compare two estimators by the combined 5x2cv F test: five times two-fold cross-validation on the same halves.

    Source: Alpaydin, "Combined 5x2cv F test for comparing supervised classification learning algorithms" (1999), after
    Dietterich (1998).

    Args:
        first, second: estimators, cloned before each fit.
        X, y: the data.
        scoring: a scorer or its name; None for the estimators' own score.
        random_state: seed of the halves.

    Example:
        >>> from sklearn.linear_model import LinearRegression
        >>> from mixtura.classical import MoERegressor
        >>> X = np.linspace(-1, 1, 100)[:, None]
        >>> y = np.abs(X[:, 0]) + 0.1 * np.random.default_rng(0).normal(size=100)
        >>> five_by_two(MoERegressor(2, random_state=0), LinearRegression(), X, y=y, random_state=0).significant()
        True
    """
    rng = check_random_state(random_state)
    folds = StratifiedKFold if is_classifier(first) else KFold
    differences = np.array(
        [
            _differences(first, second, X, y=y, scoring=scoring, cv=folds(2, shuffle=True, random_state=rng))
            for _ in range(5)
        ]
    )
    variance = ((differences - differences.mean(axis=1, keepdims=True)) ** 2).sum()
    statistic, p_value = _ratio(float((differences**2).sum()), 2.0 * float(variance))
    if np.isfinite(statistic):
        p_value = float(stats.f.sf(statistic, 10, 5))
    return Comparison(difference=float(differences.mean()), statistic=statistic, p_value=p_value)


def paired_t(
    first: BaseEstimator, second: BaseEstimator, X: Any, *, y: Any, cv: Any = 10, scoring: Scorer = None
) -> Comparison:
    """Compare two estimators by a paired t test on the folds of one cross-validation, corrected for shared rows.

    The variance is multiplied by `1 / k + n_test / n_train` instead of `1 / k`, since training sets overlap.

    Source: Nadeau and Bengio, "Inference for the generalization error" (2003).

    Args:
        first, second: estimators, cloned before each fit.
        X, y: the data.
        cv: number of folds or a splitter, as in scikit-learn.
        scoring: a scorer or its name; None for the estimators' own score.

    Example:
        >>> from sklearn.dummy import DummyRegressor
        >>> from sklearn.linear_model import LinearRegression
        >>> X = np.linspace(0, 1, 50)[:, None]
        >>> y = X[:, 0] + 0.1 * np.sin(99 * X[:, 0])
        >>> folds = KFold(5, shuffle=True, random_state=0)
        >>> paired_t(LinearRegression(), DummyRegressor(), X, y=y, cv=folds).difference > 0
        True
    """
    splitter = check_cv(cv, y, classifier=is_classifier(first))
    differences = _differences(first, second, X, y=y, scoring=scoring, cv=splitter)
    sizes = [(len(train), len(test)) for train, test in splitter.split(X, y)]
    k, share = len(differences), float(np.mean([test / train for train, test in sizes]))
    if k < 2:
        raise UserError(f"expected at least 2 folds, got {k}; raise cv")
    spread = float(np.sqrt((1.0 / k + share) * differences.var(ddof=1)))
    statistic, p_value = _ratio(float(differences.mean()), spread)
    if np.isfinite(statistic):
        p_value = float(2.0 * stats.t.sf(abs(statistic), k - 1))
    return Comparison(difference=float(differences.mean()), statistic=statistic, p_value=p_value)


def mcnemar(y: Any, first: Any, second: Any) -> Comparison:
    """Compare two finished classifiers by their labels on the same rows, which neither of them was trained on.

    Counts the rows on which just one is right: the exact binomial test below 25 of them, else chi-squared with
    Edwards' correction. `difference` is the difference of the accuracies.

    Source: McNemar (1947); Dietterich (1998).

    Args:
        y: the true labels, (n_samples,).
        first, second: predicted labels, (n_samples,).

    Example:
        >>> mcnemar([1] * 8, [1] * 8, [0] * 8).p_value
        0.0078125
    """
    truth, a, b = (np.asarray(labels) for labels in (y, first, second))
    if not (truth.ndim == 1 and truth.shape == a.shape == b.shape and len(truth)):
        raise UserError(
            f"expected labels of one shape (n,), got {truth.shape}, {a.shape}, {b.shape}; pass the same rows"
        )
    wins, losses = int(((a == truth) & (b != truth)).sum()), int(((a != truth) & (b == truth)).sum())
    n = wins + losses
    difference = (wins - losses) / len(truth)
    if n == 0:
        return Comparison(difference=0.0, statistic=0.0, p_value=1.0)
    if n < EXACT_BELOW:
        exact = float(stats.binomtest(wins, n).pvalue)
        return Comparison(difference=difference, statistic=float(min(wins, losses)), p_value=exact)
    statistic = max(abs(wins - losses) - 1, 0) ** 2 / n
    return Comparison(difference=difference, statistic=statistic, p_value=float(stats.chi2.sf(statistic, 1)))


def _differences(first: BaseEstimator, second: BaseEstimator, X: Any, *, y: Any, scoring: Scorer, cv: Any) -> Array:
    differences = []
    for train, test in cv.split(X, y):
        scores = [_score(model, X, y, scoring=scoring, train=train, test=test) for model in (first, second)]
        differences.append(scores[0] - scores[1])
    return np.array(differences, dtype=np.float64)


def _score(
    model: BaseEstimator, X: Any, y: Any, *, scoring: Scorer, train: NDArray[np.intp], test: NDArray[np.intp]
) -> float:
    fitted = clone(model).fit(_safe_indexing(X, train), _safe_indexing(y, train))
    return float(check_scoring(fitted, scoring=scoring)(fitted, _safe_indexing(X, test), _safe_indexing(y, test)))


def _ratio(above: float, below: float) -> tuple[float, float]:
    """Divide; where nothing varies, no difference is no surprise and any difference is certain."""
    if below > 0:
        return above / below, np.nan
    return (0.0, 1.0) if above == 0 else (np.inf if above > 0 else -np.inf, 0.0)
