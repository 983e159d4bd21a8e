"""Every layout with every router at once, dropless and with a capacity; unequal tokens, and none on one rank."""

import pytest

from tests.contracts.cases import ROUTERS
from tests.distributed.cases import Case
from tests.distributed.test_equal import LAYOUTS, TOKENS, check, name_of, size

CUT = [{"dp": 2, "tp": 2}, {"fsdp": 2, "tp": 2}, {"ep": 2, "tp": 2}]


def case(mesh, policy):
    tokens = TOKENS[size(mesh) // mesh.get("tp", 1)]
    return Case(mesh=mesh, tokens=tokens, routers=tuple(sorted(ROUTERS)), num=4, policy=policy)


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["dropless", "drop"])
@pytest.mark.parametrize("mesh", [*LAYOUTS, {"tp": 2}], ids=name_of)
def test_all_routers(mesh, policy):
    check(case(mesh, policy))


@pytest.mark.slow
@pytest.mark.parametrize("mesh", CUT, ids=name_of)
def test_all_routers_with_the_hidden_width_cut(mesh):
    check(case(mesh, "drop"))
