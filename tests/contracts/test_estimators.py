"""Every classical estimator keeps scikit-learn's contract: all of its checks, none expected to fail."""

import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from mixtura.classical import HMEClassifier, HMERegressor, MoEClassifier, MoERegressor

# Fewer starts and iterations than the defaults, as scikit-learn's own tests of iterative estimators take.
ESTIMATORS = [
    MoERegressor(n_init=2, max_iter=30),
    MoEClassifier(n_init=1, max_iter=30),
    HMERegressor(depth=1, n_init=1, max_iter=30),
    HMEClassifier(depth=1, n_init=1, max_iter=30),
]


# That EM stops at 30 iterations and that exact data floor the variance is what the checks ask for.
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
@parametrize_with_checks(ESTIMATORS)
def test_scikit_learn_contract(estimator, check):
    check(estimator)
