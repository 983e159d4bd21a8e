import numpy as np
import pytest

from mixtura.classical import HMERegressor, MoEClassifier, MoERegressor, select_n_experts
from mixtura.errors import UserError
from tests.classical.samples import switching


@pytest.mark.parametrize("criterion", ["bic", "icl", "cv"])
def test_the_generating_number_is_chosen(criterion):
    X, y, _ = switching(300)
    found = select_n_experts(MoERegressor(random_state=0), X, y, n_experts=[1, 2, 3], criterion=criterion, cv=3)
    assert found.n_experts == 2
    assert found.model.n_experts_ == 2
    assert [candidate.n_experts for candidate in found.candidates] == [1, 2, 3]
    assert found.candidates[0].log_likelihood < found.candidates[1].log_likelihood


def test_the_criteria_are_those_of_the_model():
    X, y, _ = switching(100)
    found = select_n_experts(MoERegressor(random_state=0), X, y, n_experts=[2], criterion="aic")
    (candidate,) = found.candidates
    free = 4 + 2 + 2
    assert candidate.n_parameters == free
    assert candidate.aic == pytest.approx(2 * free - 2 * candidate.log_likelihood)
    assert candidate.bic == pytest.approx(np.log(100) * free - 2 * candidate.log_likelihood)
    share = found.model.responsibilities(X, y)
    entropy = -(share * np.log(np.maximum(share, 1e-300))).sum()
    assert candidate.icl == pytest.approx(candidate.bic + 2 * entropy)
    assert np.isnan(candidate.cv)
    assert "     2           8" in str(found)
    assert str(found).endswith("*")


def test_classifiers_are_selected_too_and_weights_count():
    rng = np.random.default_rng(0)
    X = rng.uniform(-1, 1, size=(300, 1))
    y = np.abs(X[:, 0]) > 0.5
    weight = np.where(X[:, 0] > 0, 1.0, 0.0)
    model = MoEClassifier(random_state=0, n_init=1)
    assert select_n_experts(model, X, y, n_experts=[1, 2]).n_experts == 2
    assert select_n_experts(model, X, y, n_experts=[1, 2], sample_weight=weight).n_experts == 1


def test_no_candidates_and_no_criterion_are_refused():
    with pytest.raises(UserError, match=r"expected numbers of experts to try, got \[\]; pass"):
        select_n_experts(MoERegressor(), [[0.0]], [0.0], n_experts=[])
    with pytest.raises(UserError, match="expected numbers of experts to try, got 3; pass"):
        select_n_experts(MoERegressor(), [[0.0]], [0.0], n_experts=3)
    with pytest.raises(UserError, match=r"expected a model with n_experts, got HMERegressor.*max_leaves"):
        select_n_experts(HMERegressor(), [[0.0]], [0.0])
    with pytest.raises(UserError, match="expected criterion one of log_likelihood, aic, bic, icl, cv, got 'dic'"):
        select_n_experts(MoERegressor(), [[0.0]], [0.0], criterion="dic")
