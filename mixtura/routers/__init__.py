"""Routers: who goes to whom. One contract (`base.Router`), one dict of names (`ROUTERS`).

Example:
    >>> ROUTERS["switch"](8, 4).k
    1
"""

from mixtura.routers.balanced import Base, Sinkhorn
from mixtura.routers.base import Router, check_router, top_k
from mixtura.routers.expert_choice import ExpertChoice
from mixtura.routers.sigmoid import SigmoidBias, update_biases
from mixtura.routers.soft import Soft
from mixtura.routers.topk import NoisyTopK, Switch, TopK

__all__ = [
    "ROUTERS",
    "Base",
    "ExpertChoice",
    "NoisyTopK",
    "Router",
    "SigmoidBias",
    "Sinkhorn",
    "Soft",
    "Switch",
    "TopK",
    "check_router",
    "top_k",
    "update_biases",
]

ROUTERS: dict[str, type[Router]] = {
    "topk": TopK,
    "noisy_topk": NoisyTopK,
    "switch": Switch,
    "sigmoid_bias": SigmoidBias,
    "expert_choice": ExpertChoice,
    "sinkhorn": Sinkhorn,
    "base": Base,
    "soft": Soft,
}
