"""The layer's maths as loops over tokens and choices in plain Python: what every row of the table is compared with."""

import math

import torch
from torch import Tensor

import mixtura as mx
from mixtura import kernels


def one_expert(experts, e: int, x_1D: Tensor) -> Tensor:
    """Expert e on one token."""
    if isinstance(experts, mx.ModuleExperts):
        return experts[e](x_1D)
    up_bias = None if experts.up_bias is None else experts.up_bias[e]
    down_bias = None if experts.down_bias is None else experts.down_bias[e]
    z = torch.nn.functional.linear(x_1D, experts.up_proj[e], up_bias)
    a = kernels.ACTIVATIONS[experts.activation].forward(z)
    return torch.nn.functional.linear(a, experts.down_proj[e], down_bias)


def keep(routing: mx.Routing, *, factor: float | None, policy: str) -> list[int]:
    """Numbers of the assignments that find room, in the order in which they are served."""
    expert, weight, token = routing.expert_N.tolist(), routing.weight_N.tolist(), routing.token_N.tolist()
    order = range(len(expert))
    if factor is None:
        return list(order)
    capacity = max(math.ceil(round(len(expert) * factor / routing.num_experts, 9)), 1)
    if policy == "priority":
        best = [max(w for w, s in zip(weight, token, strict=True) if s == t) for t in range(routing.num_tokens)]
        order = sorted(order, key=lambda n: (n % routing.choices, -best[token[n]]))
    free, kept = [capacity] * routing.num_experts, []
    for n in order:
        if free[expert[n]]:
            free[expert[n]] -= 1
            kept.append(n)
    return kept


def moe_loop(layer: mx.MoE, x_TD: Tensor, routing: mx.Routing) -> Tensor:
    """What the layer must give for this routing."""
    y = [torch.zeros_like(x) for x in x_TD]
    for n in keep(routing, factor=layer.capacity.factor, policy=layer.policy):
        t, e = int(routing.token_N[n]), int(routing.expert_N[n])
        y[t] = y[t] + routing.weight_N[n].to(x_TD.dtype) * one_expert(layer.experts, e, x_TD[t : t + 1])[0]
    return torch.stack(y)
