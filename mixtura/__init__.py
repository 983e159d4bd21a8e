"""mixtura: the mixture-of-experts toolkit for Python."""

from mixtura import kernels, losses, routers
from mixtura.config import MoEConfig
from mixtura.control import BalanceController
from mixtura.dispatch import Capacity
from mixtura.errors import UserError
from mixtura.experts import MLP, GroupedMLP, ModuleExperts
from mixtura.layer import MoE
from mixtura.losses.apply import attach, collect_losses
from mixtura.observe.record import record
from mixtura.replay import replay
from mixtura.roles import freeze, freeze_routing, param_groups, unfreeze_routing
from mixtura.routing import Routing, Rows

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
    "kernels",
    "losses",
    "param_groups",
    "record",
    "replay",
    "routers",
    "unfreeze_routing",
]
__version__ = "0.1.0"
