"""The table is complete: what the package offers stands in it."""

import typing

from mixtura import routers
from mixtura.dispatch import Policy
from tests.contracts.cases import POLICIES, ROUTERS, D, E


def test_every_router_has_a_row():
    built = {type(case.make(D, E, 1 if case.one_choice else 2)) for case in ROUTERS.values()}
    assert built == {*routers.ROUTERS.values(), routers.Gate}


def test_every_policy_has_a_row():
    assert {options.get("policy", "drop") for options in POLICIES.values()} == set(typing.get_args(Policy))
