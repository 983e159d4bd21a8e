"""Mixtures on several machines, by torch.distributed: experts spread over ranks, and everything that must know of it.

Example:
    >>> AXES
    ('dp', 'fsdp', 'ep', 'tp')
"""

from mixtura.parallel.balance import Placement, place_experts
from mixtura.parallel.checkpoint import Saver, export_safetensors, is_whole, load, read_weights
from mixtura.parallel.clip import clip_grad_norm
from mixtura.parallel.collective import RankError
from mixtura.parallel.expert import ExpertParallel
from mixtura.parallel.mesh import AXES, make_mesh, meeting_place, one_process
from mixtura.parallel.shard import parallelize
from mixtura.parallel.tensor import TensorParallel

__all__ = [
    "AXES",
    "ExpertParallel",
    "Placement",
    "RankError",
    "Saver",
    "TensorParallel",
    "clip_grad_norm",
    "export_safetensors",
    "is_whole",
    "load",
    "make_mesh",
    "meeting_place",
    "one_process",
    "parallelize",
    "place_experts",
    "read_weights",
]
