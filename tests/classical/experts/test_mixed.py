import numpy as np
import pytest

from mixtura.classical import ColumnGroups, LinearExpert, MoERegressor, StudentTExpert
from mixtura.classical.experts.choose import choose_experts
from mixtura.classical.experts.mixed import MixedExpert, split_columns
from mixtura.errors import UserError
from tests.classical.samples import switching


def test_a_list_of_equal_families_is_the_family():
    X, y, _ = switching()
    together = MoERegressor(2, random_state=0, n_init=2).fit(X, y)
    listed = MoERegressor(expert=["linear", LinearExpert()], random_state=0, n_init=2).fit(X, y)
    assert listed.log_likelihood_ == pytest.approx(together.log_likelihood_, rel=1e-9)
    np.testing.assert_allclose(listed.predict(X), together.predict(X), rtol=1e-7)
    assert listed.n_parameters_ == together.n_parameters_


def test_warnings_name_the_expert_of_the_list():
    X, y, right = switching(200, noise=0.0)
    y = np.where(right == 1, y, y + np.random.default_rng(1).normal(size=200))
    with pytest.warns(UserWarning, match="the variance of expert 1 fell to the floor"):
        MoERegressor(expert=[StudentTExpert(), "linear"], division=right, random_state=0).fit(X, y)


def test_each_expert_of_a_list_gets_its_group_of_columns():
    families = split_columns(MixedExpert((LinearExpert(), StudentTExpert())), [[0], [1, 2]], n_experts=2).families
    assert [type(family) for family in families] == [LinearExpert, StudentTExpert]
    assert [family.columns for family in families] == [[0], [1, 2]]
    rng = np.random.default_rng(0)
    X = rng.normal(size=(400, 3))
    y = X @ [3.0, 0.0, 0.0] + 0.1 * rng.normal(size=400)
    model = MoERegressor(2, division=ColumnGroups([[1, 2], [0]]), gate="fixed", random_state=0).fit(X, y)
    np.testing.assert_allclose(model.gate_proba(X), 0.5)
    assert model.experts_.parts[1].coef.item() == pytest.approx(3.0, abs=0.1)
    assert model.responsibilities(X, y)[:, 1].mean() > 0.9


def test_a_number_that_is_not_the_lists_is_refused():
    with pytest.raises(UserError, match="expected n_experts=2, one for each in expert, got 3"):
        choose_experts(["linear", "ridge"], 3, task="regression")
