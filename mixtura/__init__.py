"""mixtura: the mixture-of-experts toolkit for Python."""

from mixtura import kernels, losses, routers
from mixtura.config import MoEConfig
from mixtura.dispatch import Capacity
from mixtura.errors import UserError
from mixtura.experts import MLP, GroupedMLP, ModuleExperts
from mixtura.layer import MoE
from mixtura.losses import attach, collect_losses
from mixtura.observe.record import record
from mixtura.replay import replay
from mixtura.routing import Routing, Rows

__all__ = [
    "MLP",
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
    "kernels",
    "losses",
    "record",
    "replay",
    "routers",
]
__version__ = "0.1.0"
