"""The recipes that find objects: the dense twin differs in its experts alone."""

from dataclasses import replace

import pytest

from mixtura.models.count import count_parameters
from mixtura.train.recipes import get_recipe
from mixtura.train.setup import build_model


@pytest.mark.parametrize("name", ["detect-tiny", "detect-fashion"])
def test_the_dense_twin_has_as_many_active_parameters_and_no_experts(name):
    sparse, dense = get_recipe(name), get_recipe(f"{name}-dense")
    assert replace(dense, recipe=name, model=sparse.model) == sparse
    many, few = count_parameters(build_model(sparse)), count_parameters(build_model(dense))
    assert few.active == few.total < many.total
    assert few.active == pytest.approx(many.active, rel=0.01)


def test_fashion_comes_from_its_package():
    assert get_recipe("detect-fashion").data.path == "fashion-mnist"
