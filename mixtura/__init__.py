"""mixtura: the mixture-of-experts toolkit for Python.

Names are loaded on first use (PEP 562): `import mixtura` is cheap, and `mixtura.classical` needs no torch.
"""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what _HOME says, for type checkers and editors
    from mixtura import classical as classical
    from mixtura import kernels, losses, routers
    from mixtura.errors import UserError
    from mixtura.experts import MLP, GroupedMLP, ModuleExperts
    from mixtura.layer import MoE, MoEConfig
    from mixtura.losses import attach, collect_losses
    from mixtura.observe.record import record
    from mixtura.routing import Routing, Rows

__all__ = [
    "MLP",
    "GroupedMLP",
    "MoE",
    "MoEConfig",
    "ModuleExperts",
    "Routing",
    "Rows",
    "UserError",
    "attach",
    "collect_losses",
    "kernels",
    "losses",
    "record",
    "routers",
]
__version__ = "0.1.0"

_HOME = {
    "MLP": "mixtura.experts",
    "GroupedMLP": "mixtura.experts",
    "MoE": "mixtura.layer",
    "MoEConfig": "mixtura.layer",
    "ModuleExperts": "mixtura.experts",
    "Routing": "mixtura.routing",
    "Rows": "mixtura.routing",
    "UserError": "mixtura.errors",
    "attach": "mixtura.losses",
    "collect_losses": "mixtura.losses",
    "record": "mixtura.observe.record",
}
# Not in __all__ is what needs an extra: `from mixtura import *` works with torch alone.
_MODULES = ("classical", "kernels", "losses", "routers")


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
