"""The mixtures of transformers by family: its own experts or whole block, built from a few sizes."""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, NamedTuple

from torch import Tensor, nn


class Sizes(NamedTuple):
    """Widths and numbers of one block."""

    dim: int
    hidden: int
    num_experts: int
    k: int


class Family(NamedTuple):
    """Where its classes are, what its config calls the sizes, and sizes like those of its best-known model."""

    module: str
    experts: str
    block: str
    config: str
    names: Callable[[Sizes], Mapping[str, Any]]
    sizes: Sizes

    def get(self, name: str) -> Any:
        """A class of its modeling file."""
        return getattr(import_module(f"transformers.models.{self.module}.modeling_{self.module}"), name)

    def configure(self, sizes: Sizes, implementation: str) -> Any:
        """Its config."""
        configuration = import_module(f"transformers.models.{self.module}.configuration_{self.module}")
        config = getattr(configuration, self.config)(hidden_size=sizes.dim, **self.names(sizes))
        config._experts_implementation = implementation
        return config


def _qwen(s: Sizes) -> dict[str, Any]:
    return {"moe_intermediate_size": s.hidden, "num_experts": s.num_experts, "num_experts_per_tok": s.k}


def _mixtral(s: Sizes) -> dict[str, Any]:
    return {"intermediate_size": s.hidden, "num_local_experts": s.num_experts, "num_experts_per_tok": s.k}


def _deepseek(s: Sizes) -> dict[str, Any]:
    groups = {"n_group": 1, "topk_group": 1, "n_shared_experts": 1}
    return {
        "moe_intermediate_size": s.hidden,
        "n_routed_experts": s.num_experts,
        "num_experts_per_tok": s.k,
        "num_attention_heads": 2,
        **groups,
    }


def _olmoe(s: Sizes) -> dict[str, Any]:
    return {"intermediate_size": s.hidden, "num_experts": s.num_experts, "num_experts_per_tok": s.k}


def _aria(s: Sizes) -> dict[str, Any]:
    return {
        "intermediate_size": s.hidden,
        "moe_num_experts": s.num_experts,
        "moe_topk": s.k,
        "num_attention_heads": 2,
    }


def _ernie(s: Sizes) -> dict[str, Any]:
    return {"moe_intermediate_size": s.hidden, "moe_num_experts": s.num_experts, "moe_k": s.k}


def _qwen2(s: Sizes) -> dict[str, Any]:
    return {**_qwen(s), "shared_expert_intermediate_size": s.hidden}


FAMILIES: dict[str, Family] = {
    "Mixtral": Family(
        "mixtral", "MixtralExperts", "MixtralSparseMoeBlock", "MixtralConfig", _mixtral, Sizes(512, 1792, 8, 2)
    ),
    "Qwen2-MoE": Family(
        "qwen2_moe", "Qwen2MoeExperts", "Qwen2MoeSparseMoeBlock", "Qwen2MoeConfig", _qwen2, Sizes(512, 352, 60, 4)
    ),
    "Qwen3-MoE": Family(
        "qwen3_moe", "Qwen3MoeExperts", "Qwen3MoeSparseMoeBlock", "Qwen3MoeConfig", _qwen, Sizes(512, 192, 128, 8)
    ),
    "OLMoE": Family("olmoe", "OlmoeExperts", "OlmoeSparseMoeBlock", "OlmoeConfig", _olmoe, Sizes(512, 256, 64, 8)),
    "DeepSeek-V2": Family(
        "deepseek_v2", "DeepseekV2Experts", "DeepseekV2Moe", "DeepseekV2Config", _deepseek, Sizes(512, 352, 64, 6)
    ),
    "DeepSeek-V3": Family(
        "deepseek_v3", "DeepseekV3Experts", "DeepseekV3MoE", "DeepseekV3Config", _deepseek, Sizes(512, 144, 128, 8)
    ),
    "GLM-4-MoE": Family(
        "glm4_moe", "Glm4MoeExperts", "Glm4MoeMoE", "Glm4MoeConfig", _deepseek, Sizes(512, 176, 128, 8)
    ),
    "gpt-oss": Family("gpt_oss", "GptOssExperts", "GptOssMLP", "GptOssConfig", _mixtral, Sizes(512, 512, 32, 4)),
    "Granite-MoE": Family(
        "granitemoe", "GraniteMoeExperts", "GraniteMoeMoE", "GraniteMoeConfig", _mixtral, Sizes(512, 256, 32, 8)
    ),
    "Phi-MoE": Family(
        "phimoe", "PhimoeExperts", "PhimoeSparseMoeBlock", "PhimoeConfig", _mixtral, Sizes(512, 800, 16, 2)
    ),
    "Ernie-4.5-MoE": Family(
        "ernie4_5_moe",
        "Ernie4_5_MoeExperts",
        "Ernie4_5_MoeSparseMoeBlock",
        "Ernie4_5_MoeConfig",
        _ernie,
        Sizes(512, 304, 64, 6),
    ),
    "Aria": Family("aria", "AriaExperts", "AriaTextMoELayer", "AriaTextConfig", _aria, Sizes(512, 336, 64, 6)),
}


def fill(module: nn.Module, *, std: float) -> nn.Module:
    """Draw all that a checkpoint would hold from a normal distribution; some classes leave their parameters empty."""
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            tensor.normal_(std=std)
    return module


def output(result: Tensor | tuple[Tensor, ...]) -> Tensor:
    """A block's output: some give the router's scores beside it."""
    return result[0] if isinstance(result, tuple) else result
