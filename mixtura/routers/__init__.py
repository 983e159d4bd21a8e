"""Routers: who goes to whom. One contract (`base.Router`), one dict of names (`ROUTERS`).

Example:
    >>> ROUTERS["switch"](8, 4).k
    1
"""

from mixtura.routers.base import Router, check_router, top_k
from mixtura.routers.sigmoid import SigmoidBias, update_biases
from mixtura.routers.topk import NoisyTopK, Switch, TopK

__all__ = ["ROUTERS", "NoisyTopK", "Router", "SigmoidBias", "Switch", "TopK", "check_router", "top_k", "update_biases"]

ROUTERS: dict[str, type[Router]] = {
    "topk": TopK,
    "noisy_topk": NoisyTopK,
    "switch": Switch,
    "sigmoid_bias": SigmoidBias,
}
