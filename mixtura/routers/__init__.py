"""Routers: who goes to whom. One contract (`base.Router`), one dict of names (`ROUTERS`).

Example:
    >>> ROUTERS["switch"](8, 4).k
    1
"""

from mixtura.routers.annealing import Annealing
from mixtura.routers.balanced import Base, Sinkhorn
from mixtura.routers.base import Router, check_router, set_temperature, top_k
from mixtura.routers.cosine import CosineGate
from mixtura.routers.dense import Dense, Hard
from mixtura.routers.dialects import GShardGate, NaiveGate, SwitchGate
from mixtura.routers.expert_choice import ExpertChoice
from mixtura.routers.gshard import GShard
from mixtura.routers.hash import Hash, Random
from mixtura.routers.hierarchical import Hierarchical
from mixtura.routers.null import NullExperts
from mixtura.routers.sigmoid import SigmoidBias, update_biases
from mixtura.routers.soft import Soft
from mixtura.routers.top_p import TopP
from mixtura.routers.topk import Gate, NoisyTopK, Switch, TopK

__all__ = [
    "ROUTERS",
    "Annealing",
    "Base",
    "CosineGate",
    "Dense",
    "ExpertChoice",
    "GShard",
    "GShardGate",
    "Gate",
    "Hard",
    "Hash",
    "Hierarchical",
    "NaiveGate",
    "NoisyTopK",
    "NullExperts",
    "Random",
    "Router",
    "SigmoidBias",
    "Sinkhorn",
    "Soft",
    "Switch",
    "SwitchGate",
    "TopK",
    "TopP",
    "check_router",
    "set_temperature",
    "top_k",
    "update_biases",
]

# `Gate` is not among them: it is made from a module, and no name can stand for that.
ROUTERS: dict[str, type[Router]] = {
    "topk": TopK,
    "noisy_topk": NoisyTopK,
    "switch": Switch,
    "sigmoid_bias": SigmoidBias,
    "dense": Dense,
    "hard": Hard,
    "gshard": GShard,
    "top_p": TopP,
    "hash": Hash,
    "random": Random,
    "hierarchical": Hierarchical,
    "naive_gate": NaiveGate,
    "gshard_gate": GShardGate,
    "switch_gate": SwitchGate,
    "expert_choice": ExpertChoice,
    "sinkhorn": Sinkhorn,
    "base": Base,
    "soft": Soft,
}
