"""Other people's mixture layers on the same matrices and routing, for the benchmarks; missing ones are left out."""

from collections.abc import Callable
from types import SimpleNamespace

import torch
from torch import Tensor, nn

import mixtura as mx

Layer = Callable[[Tensor, Tensor, Tensor], Tensor]  # x (T, D), experts (T, K), weights (T, K) -> (T, D)


class ModuleLoop(nn.Module):
    """What people write first: a list of MLPs, and a loop that picks each one's tokens."""

    def __init__(self, *, num_experts: int, dim: int, hidden: int) -> None:
        super().__init__()
        self.experts = nn.ModuleList(mx.MLP(dim=dim, hidden=hidden) for _ in range(num_experts))

    def forward(self, x: Tensor, index: Tensor, weight: Tensor) -> Tensor:
        """Add each expert's weighted output to its tokens."""
        out = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            token, choice = torch.where(index == e)
            if token.numel():
                out = out.index_add(0, token, expert(x[token]) * weight[token, choice, None].to(x.dtype))
        return out


def transformers_layers(experts: mx.GroupedMLP) -> dict[str, Layer]:
    """The experts of transformers' Qwen3-MoE in its three implementations, sharing the parameters of `experts`."""
    try:
        from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
        from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeConfig, Qwen3MoeExperts
    except ImportError:
        return {}
    layers: dict[str, Layer] = {}
    for name in ("eager", "batched_mm", "grouped_mm"):
        if name != "eager" and name not in ALL_EXPERTS_FUNCTIONS.valid_keys():
            continue
        config = Qwen3MoeConfig(
            num_experts=experts.num_experts, hidden_size=experts.dim, moe_intermediate_size=experts.hidden
        )
        config._experts_implementation = name
        with torch.device("meta"):
            layer = Qwen3MoeExperts(config)
        layer.gate_up_proj, layer.down_proj = experts.up_proj, experts.down_proj
        layers[f"transformers {name}"] = lambda x, index, weight, layer=layer: layer(x, index, weight.to(x.dtype))
    return layers


def versions() -> dict[str, str]:
    """The versions of the peers that are there."""
    try:
        import transformers
    except ImportError:
        transformers = SimpleNamespace(__version__="missing")
    return {"transformers": transformers.__version__}
