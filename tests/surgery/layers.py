"""Small mixtures with every router that can be edited, and what one computes, written out."""

import torch
from torch import Tensor

import mixtura as mx
from mixtura.surgery.layers import stack_of
from mixtura.surgery.sites import dense_forward

ROUTERS = {
    "topk": ("topk", {}),
    "softmax_topk": ("topk", {"order": "softmax_topk"}),
    "null_experts": ("topk", {"order": "softmax_topk", "null_experts": {"zero": 1, "copy": 1}}),
    "sigmoid": ("sigmoid_bias", {}),
    "raw_sigmoid": ("sigmoid_bias", {"renormalize": False}),
    "noisy_topk": ("noisy_topk", {"init_std": 0.1}),
    "gshard": ("gshard", {"random_second": "never"}),
    "top_p": ("top_p", {"max_k": 2}),
    "dense": ("dense", {}),
}


def build(router: str, *, activation: str = "swiglu", num_experts: int = 4) -> mx.MoE:
    """A layer of D=8, F=12, with biases and a router that already prefers some experts."""
    kind, options = {**ROUTERS, "expert_choice": ("expert_choice", {})}[router]
    k = 2 if kind in ("topk", "sigmoid_bias", "noisy_topk", "expert_choice") else None
    layer = mx.MoEConfig(
        dim=8,
        hidden=12,
        num_experts=num_experts,
        k=k,
        router=kind,
        router_options=options,
        activation=activation,
        bias=True,
    ).build()
    torch.nn.init.normal_(layer.router.weight, std=0.5)
    return layer


def by_hand(layer: mx.MoE, x_TD: Tensor) -> Tensor:
    """The sum over a token's assignments of weight * expert(x), one after another."""
    routing, stack, y_TD = layer.router(x_TD), stack_of(layer.experts), torch.zeros_like(x_TD)
    for token, expert, weight in zip(routing.token_N, routing.expert_N, routing.weight_N, strict=True):
        y_TD[token] += weight * dense_forward(stack, x_TD[token : token + 1], expert=int(expert))[0]
    return y_TD
