"""Plain models that use the layer."""

from mixtura.models.condconv import CondConvConfig, CondConvNet
from mixtura.models.count import ParameterCount, count_parameters
from mixtura.models.dit import DiT, DiTConfig
from mixtura.models.gpt import GPT, GPTConfig
from mixtura.models.sample import generate
from mixtura.models.vit import ViT, ViTConfig

__all__ = [
    "GPT",
    "CondConvConfig",
    "CondConvNet",
    "DiT",
    "DiTConfig",
    "GPTConfig",
    "ParameterCount",
    "ViT",
    "ViTConfig",
    "count_parameters",
    "generate",
]
