"""Plain models that use the layer."""

from mixtura.models.count import ParameterCount, count_parameters
from mixtura.models.gpt import GPT, GPTConfig
from mixtura.models.sample import generate

__all__ = ["GPT", "GPTConfig", "ParameterCount", "count_parameters", "generate"]
