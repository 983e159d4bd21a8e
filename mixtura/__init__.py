"""mixtura: the mixture-of-experts toolkit for Python.

Names are loaded on first use (PEP 562): `import mixtura` is cheap, and `mixtura.classical` needs no torch.
"""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what _HOME says, for type checkers and editors
    from mixtura import classical as classical
    from mixtura import hub, kernels, losses, multitask, routers, surgery
    from mixtura import parallel as parallel
    from mixtura.config import MoEConfig
    from mixtura.control import BalanceController
    from mixtura.dispatch import Capacity
    from mixtura.errors import UserError
    from mixtura.experts import MLP, GroupedMLP, ModuleExperts
    from mixtura.layer import MoE
    from mixtura.losses.apply import attach, collect_losses
    from mixtura.observe.record import record
    from mixtura.parallel.shard import parallelize as parallelize
    from mixtura.replays import replay
    from mixtura.roles import freeze, freeze_routing, param_groups, unfreeze_routing
    from mixtura.routing import Routing, Rows
    from mixtura.surgery.moefy import moefy

__all__ = [
    "MLP",
    "BalanceController",
    "Capacity",
    "GroupedMLP",
    "MoE",
    "MoEConfig",
    "ModuleExperts",
    "Routing",
    "Rows",
    "UserError",
    "attach",
    "collect_losses",
    "freeze",
    "freeze_routing",
    "hub",
    "kernels",
    "losses",
    "moefy",
    "multitask",
    "param_groups",
    "record",
    "replay",
    "routers",
    "surgery",
    "unfreeze_routing",
]
__version__ = "0.1.0"

_HOME = {
    "BalanceController": "mixtura.control",
    "Capacity": "mixtura.dispatch",
    "GroupedMLP": "mixtura.experts",
    "MLP": "mixtura.experts",
    "MoE": "mixtura.layer",
    "MoEConfig": "mixtura.config",
    "ModuleExperts": "mixtura.experts",
    "Routing": "mixtura.routing",
    "Rows": "mixtura.routing",
    "UserError": "mixtura.errors",
    "attach": "mixtura.losses.apply",
    "collect_losses": "mixtura.losses.apply",
    "freeze": "mixtura.roles",
    "freeze_routing": "mixtura.roles",
    "moefy": "mixtura.surgery.moefy",
    "parallelize": "mixtura.parallel.shard",
    "param_groups": "mixtura.roles",
    "record": "mixtura.observe.record",
    "replay": "mixtura.replays",
    "unfreeze_routing": "mixtura.roles",
}
# Not in __all__ is what needs an extra, or seconds: `from mixtura import *` works with torch alone, and soon.
_MODULES = ("classical", "hub", "kernels", "losses", "multitask", "parallel", "routers", "surgery")


if not TYPE_CHECKING:  # a type checker knows the names above, and shall report every other

    def __getattr__(name: str) -> Any:
        if name in _MODULES:
            return _import_module(f"{__name__}.{name}")  # importing a submodule binds it here
        if name not in _HOME:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(_import_module(_HOME[name]), name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME, *_MODULES})
