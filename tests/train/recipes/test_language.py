import pytest

from mixtura.models.count import count_parameters
from mixtura.train.recipes import get_recipe
from mixtura.train.setup import build_model


def test_the_dense_twin_has_as_many_active_parameters_and_no_experts():
    sparse, dense = (count_parameters(build_model(get_recipe(name))) for name in ("lm-tiny", "lm-tiny-dense"))
    assert dense.active == dense.total < sparse.total
    assert dense.active == pytest.approx(sparse.active, rel=0.05)


def test_fine_grained_experts_have_the_active_parameters_of_one_expert():
    fine, one = (count_parameters(build_model(get_recipe(name))) for name in ("lm-finegrained", "lm-tiny"))
    assert fine.active == pytest.approx(one.active, rel=0.05)
    config = get_recipe("lm-finegrained").model
    assert (config.num_experts, config.k, config.losses["load_balance"]) == (64, 8, 0)


def test_a_switch_drops_what_is_beyond_its_capacity():
    config = get_recipe("lm-switch").model
    assert (config.router, config.k, config.capacity_factor, config.policy) == ("switch", 1, 1.25, "drop")
