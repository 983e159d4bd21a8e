"""Every layout with every router at once, dropless and with a capacity; unequal tokens, and none on one rank."""

import pytest

from tests.contracts.cases import ROUTERS
from tests.distributed.cases import Case
from tests.distributed.test_equal import LAYOUTS, TOKENS, check, name_of, size

CUT = [{"tp": 2}, {"dp": 2, "tp": 2}, {"fsdp": 2, "tp": 2}, {"ep": 2, "tp": 2}]


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["dropless", "drop"])
@pytest.mark.parametrize("mesh", [*LAYOUTS, *CUT], ids=name_of)
def test_all_routers(mesh, policy):
    tokens = TOKENS[size(mesh) // mesh.get("tp", 1)]
    routers = tuple(sorted(ROUTERS))
    check(Case(mesh=mesh, tokens=tokens, routers=routers, num=4, policy=policy))
