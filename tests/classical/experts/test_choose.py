import pytest
from sklearn.svm import SVC, SVR

from mixtura.classical import EstimatorExpert, LinearExpert
from mixtura.classical.experts.choose import EXPERTS, choose_experts, choose_family
from mixtura.errors import UserError


@pytest.mark.parametrize("name", EXPERTS)
def test_every_name_is_a_family(name):
    assert choose_family(name, task=EXPERTS[name].task) is EXPERTS[name]


def test_the_number_is_two_or_the_lists():
    assert choose_experts("linear", None, task="regression")[1] == 2
    assert choose_experts("linear", 7, task="regression")[1] == 7
    assert choose_experts(("linear", SVR(), "gamma"), None, task="regression")[1] == 3


def test_estimators_are_wrapped_and_families_pass():
    assert isinstance(choose_family(SVC(), task="classification"), EstimatorExpert)
    family = LinearExpert(alpha=2.0)
    assert choose_family(family, task="regression") is family


@pytest.mark.parametrize("number", [0, -1, 1.5, True, "2"])
def test_other_numbers_are_refused(number):
    with pytest.raises(UserError, match="expected n_experts a whole number of at least 1"):
        choose_experts("linear", number, task="regression")
