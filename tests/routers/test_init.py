"""The dict of routers."""

import inspect

from mixtura import routers
from mixtura.routers import ROUTERS, Gate, Router


def test_every_exported_router_has_a_name_in_the_dict():
    exported = [getattr(routers, name) for name in routers.__all__]
    classes = {value for value in exported if inspect.isclass(value) and issubclass(value, Router)} - {
        Router,
        Gate,
    }  # a gate is made from a module
    assert set(ROUTERS.values()) == classes


def test_every_router_is_made_from_dim_and_num_experts():
    for name, kind in ROUTERS.items():
        router = kind(8, 4)
        assert (router.dim, router.num_experts) == (8, 4), name
