"""Surgery: dense models become mixtures and back; trained mixtures grow, shrink and merge; models are fused.

Example:
    >>> from mixtura.models.gpt import GPT, GPTConfig
    >>> model = GPT(GPTConfig(num_experts=0))
    >>> sparse = moefy(model, "*.feed_forward", num_experts=4, k=2, init=Drop(ratio=0.5))
    >>> sparse.blocks[0].feed_forward.router
    TopK(dim=64, num_experts=4, k=2)
"""

from mixtura.surgery.cluster import Cluster
from mixtura.surgery.edit import add_experts, close_experts, open_experts, remove_experts, split_experts
from mixtura.surgery.ensemble import Ensemble
from mixtura.surgery.freeze import freeze_experts, unfreeze_experts
from mixtura.surgery.fuse import aim_routers, average_states, fuse, greedy_soup
from mixtura.surgery.initial import Drop, Noise, Random, Split, Upcycle
from mixtura.surgery.lora import add_lora, load_lora, merge_lora, save_lora
from mixtura.surgery.merge import merge
from mixtura.surgery.moefy import moefy
from mixtura.surgery.prune import prune, saliency
from mixtura.surgery.sites import find_mlps
from mixtura.surgery.to_dense import to_dense

__all__ = [
    "Cluster",
    "Drop",
    "Ensemble",
    "Noise",
    "Random",
    "Split",
    "Upcycle",
    "add_experts",
    "add_lora",
    "aim_routers",
    "average_states",
    "close_experts",
    "find_mlps",
    "freeze_experts",
    "fuse",
    "greedy_soup",
    "load_lora",
    "merge",
    "merge_lora",
    "moefy",
    "open_experts",
    "prune",
    "remove_experts",
    "saliency",
    "save_lora",
    "split_experts",
    "to_dense",
    "unfreeze_experts",
]
