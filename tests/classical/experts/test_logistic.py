import numpy as np
from sklearn.linear_model import LogisticRegression

from mixtura.classical import LogisticExpert, MoEClassifier


def test_one_expert_is_the_logistic_regression_of_scikit_learn():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(300, 3))
    y = (X @ rng.normal(size=(3, 3)) + rng.gumbel(size=(300, 3))).argmax(axis=1)
    ours = MoEClassifier(1, expert=LogisticExpert(1e-8), tol=1e-12).fit(X, y)
    theirs = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(X, y)
    np.testing.assert_allclose(ours.predict_proba(X), theirs.predict_proba(X), atol=1e-4)
    assert ours.n_parameters_ == 8


def test_two_experts_separate_what_one_line_cannot():
    rng = np.random.default_rng(0)
    X = rng.uniform(-1, 1, size=(600, 2))
    y = (X[:, 0] > 0) ^ (X[:, 1] > 0)
    one = MoEClassifier(1, random_state=0).fit(X, y).score(X, y)
    two = MoEClassifier(2, random_state=0, tol=1e-4).fit(X, y).score(X, y)
    assert one < 0.7
    assert two > 0.97


def test_the_generating_experts_come_back():
    rng = np.random.default_rng(0)
    X = rng.uniform(-2, 2, size=(4000, 2))
    score = np.where(X[:, 0] > 0, 4 * X[:, 1], 1 - 1.5 * X[:, 1])
    y = rng.uniform(size=4000) < 1 / (1 + np.exp(-score))
    model = MoEClassifier(2, expert=LogisticExpert(0.01), random_state=0, n_init=10).fit(X, y)
    slopes = model.experts_.coef[:, 1] - model.experts_.coef[:, 0]
    slopes = slopes[np.argsort(slopes[:, 1])]
    np.testing.assert_allclose(slopes, [[0, -1.5], [0, 4]], atol=0.35)
