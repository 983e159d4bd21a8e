from dataclasses import replace

import pytest

from mixtura.models.count import count_parameters
from mixtura.train.recipes import get_recipe
from mixtura.train.setup import build_model


def test_the_dense_twin_has_as_many_active_parameters_and_no_experts():
    sparse, dense = get_recipe("translate-tiny"), get_recipe("translate-tiny-dense")
    assert replace(dense, recipe=sparse.recipe, model=replace(dense.model, num_experts=8)) == sparse
    many, few = count_parameters(build_model(sparse)), count_parameters(build_model(dense))
    assert few.active == few.total < many.total
    assert few.active == pytest.approx(many.active, rel=0.05)
