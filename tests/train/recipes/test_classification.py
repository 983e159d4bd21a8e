import pytest

from mixtura.models.count import count_parameters
from mixtura.train.recipes import get_recipe
from mixtura.train.setup import build_model


def test_the_dense_twin_has_as_many_active_parameters_and_no_experts():
    sparse, dense = (count_parameters(build_model(get_recipe(f"classify-tiny{end}"))) for end in ("", "-dense"))
    assert dense.active == dense.total < sparse.total
    assert dense.active == pytest.approx(sparse.active, rel=0.05)
