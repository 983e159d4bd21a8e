import pytest

from mixtura.errors import UserError
from mixtura.models.count import count_parameters
from mixtura.train.recipes import RECIPES, describe, get_recipe
from mixtura.train.setup import build_model, check_start


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_can_start_and_says_what_it_is(name):
    config = get_recipe(name)
    check_start(config)
    assert config.recipe == name
    assert describe(name).endswith(".")
    assert ">>>" not in describe(name)


def test_the_dense_twin_has_as_many_active_parameters_and_no_experts():
    sparse, dense = (count_parameters(build_model(get_recipe(name))) for name in ("lm-tiny", "lm-tiny-dense"))
    assert dense.active == dense.total < sparse.total
    assert dense.active == pytest.approx(sparse.active, rel=0.05)


def test_an_unknown_recipe_is_refused_with_the_known_ones():
    with pytest.raises(UserError, match=r"expected a recipe among lm-tiny, lm-tiny-dense.*; got 'x'; `mixtura"):
        get_recipe("x")
