"""Other projects' mixture layers of equal sizes, x -> y, each with a softmax top-k router: SwiGLU, no biases.

Whichever is not installed is skipped by name. Only transformers' was ever run by us (on a CPU); the calls of the others
follow their own tests and benchmarks, and no GPU was to be had to try them.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import mixtura as mx
from benchmarks.launches import Shape
from mixtura import kernels


class Routed(nn.Module):
    """A plain router before somebody's experts: `experts(x_TD, weight_TK, expert_TK) -> y_TD`."""

    def __init__(self, shape: Shape, experts: nn.Module, call: Callable[..., Tensor]) -> None:
        super().__init__()
        self.gate, self.experts = nn.Linear(shape.dim, shape.num_experts, bias=False), experts
        self.k, self.call = shape.k, call

    def forward(self, x_TD: Tensor) -> Tensor:
        chosen = self.gate(x_TD).float().topk(self.k, dim=-1)
        return self.call(self.experts, x_TD, chosen.values.softmax(-1).to(x_TD.dtype), chosen.indices)


class Mixtura(nn.Module):
    """Our layer with one of our kernels."""

    def __init__(self, shape: Shape, kernel: str) -> None:
        super().__init__()
        router = mx.routers.TopK(shape.dim, num_experts=shape.num_experts, k=shape.k)
        experts = mx.GroupedMLP(num_experts=shape.num_experts, dim=shape.dim, hidden=shape.hidden)
        self.layer, self.kernel = mx.MoE(router=router, experts=experts), kernel

    def forward(self, x_TD: Tensor) -> Tensor:
        with kernels.use(self.kernel):
            return self.layer(x_TD)


def transformers_grouped_mm(shape: Shape) -> nn.Module:
    """Experts as transformers computes Qwen3-MoE with its implementation "grouped_mm"."""
    from transformers.models.qwen3_moe import Qwen3MoeConfig
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

    config = Qwen3MoeConfig(
        hidden_size=shape.dim, moe_intermediate_size=shape.hidden, num_experts=shape.num_experts, hidden_act="silu"
    )
    config._experts_implementation = "grouped_mm"
    experts = Qwen3MoeExperts(config)
    for parameter in experts.parameters():
        nn.init.normal_(parameter, std=0.02)
    return Routed(shape, experts, lambda experts, x_TD, weight_TK, expert_TK: experts(x_TD, expert_TK, weight_TK))


def scattermoe(shape: Shape) -> nn.Module:
    """ScatterMoE's gated MLP."""
    from scattermoe.mlp import GLUMLP

    experts = GLUMLP(shape.dim, shape.hidden, shape.num_experts, shape.k)
    return Routed(shape, experts, lambda experts, x_TD, weight_TK, expert_TK: experts(x_TD, weight_TK, expert_TK))


def megablocks(shape: Shape) -> nn.Module:
    """MegaBlocks' dropless experts, by its grouped products."""
    from megablocks.layers.arguments import Arguments
    from megablocks.layers.dmoe import ParallelDroplessMLP

    arguments = Arguments(
        hidden_size=shape.dim,
        ffn_hidden_size=shape.hidden,
        moe_num_experts=shape.num_experts,
        moe_top_k=shape.k,
        activation_fn=torch.nn.functional.silu,
        mlp_type="glu",
        mlp_impl="grouped",
        fp16=False,
        bf16=True,
        bias=False,
        return_bias=False,
    )

    def call(experts: nn.Module, x_TD: Tensor, weight_TK: Tensor, expert_TK: Tensor) -> Tensor:
        found: Any = experts(x_TD.unsqueeze(1), weight_TK, weight_TK, expert_TK)
        y = found[0] if isinstance(found, tuple) else found
        return y.view_as(x_TD)

    return Routed(shape, ParallelDroplessMLP(arguments), call)


class Sonic(nn.Module):
    """SonicMoE's layer, with its own fused router."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        from sonicmoe import MoE
        from sonicmoe.enums import ActivationType

        self.layer = MoE(
            num_experts=shape.num_experts,
            num_experts_per_tok=shape.k,
            hidden_size=shape.dim,
            intermediate_size=shape.hidden,
            activation_function=ActivationType.SWIGLU,
            add_bias=False,
            std=0.02,
        )

    def forward(self, x_TD: Tensor) -> Tensor:
        return self.layer(x_TD.unsqueeze(0))[0].squeeze(0)


LAYERS: dict[str, Callable[[Shape], nn.Module]] = {
    "mixtura, triton": partial(Mixtura, kernel="triton"),
    "mixtura, grouped_mm": partial(Mixtura, kernel="grouped_mm"),
    "transformers, grouped_mm": transformers_grouped_mm,
    "scattermoe": scattermoe,
    "megablocks": megablocks,
    "sonicmoe": Sonic,
}
