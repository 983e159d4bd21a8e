"""The layer's maths as loops over tokens and choices in plain Python: what every row of the table is compared with."""

import math

import torch
from torch import Tensor

import mixtura as mx
from mixtura import kernels
from mixtura.routing import SlotRouting


def one_expert(experts, e: int, x_1D: Tensor) -> Tensor:
    """Expert e on one token."""
    if isinstance(experts, mx.ModuleExperts):
        row = x_1D if experts.row_shape is None else x_1D.unflatten(1, experts.row_shape)
        return experts[e](row).flatten(1)
    up_bias = None if experts.up_bias is None else experts.up_bias[e]
    down_bias = None if experts.down_bias is None else experts.down_bias[e]
    z = torch.nn.functional.linear(x_1D, experts.up_proj[e], up_bias)
    a = kernels.ACTIVATIONS[experts.activation].forward(z)
    return torch.nn.functional.linear(a, experts.down_proj[e], down_bias)


def null_expert(router, j: int, x_D: Tensor) -> Tensor:
    """Null expert j on one token: first the zeros, then the copies, then the constants."""
    null = router.null_experts
    if j < null.zero:
        return x_D * 0
    if j < null.zero + null.copy:
        return x_D
    c = j - null.zero - null.copy
    a, b = torch.stack([null.mix[0, c] @ x_D, null.mix[1, c] @ x_D]).softmax(0)
    return a * x_D + b * null.vector[c]


def serve(routing: mx.Routing, *, factor: float | None, policy: str) -> list[tuple[int, int]]:
    """Who finds room: pairs (number of an assignment, the expert it gets), each with the assignment's own token."""
    expert, weight, token = routing.expert_N.tolist(), routing.weight_N.tolist(), routing.token_N.tolist()
    order, E = range(len(expert)), routing.num_experts
    if routing.by_rank:
        order = sorted(order, key=lambda n: n % routing.choices)
    capacity = len(expert) if factor is None else max(math.ceil(round(len(expert) * factor / E, 9)), 1)
    if policy == "priority":
        best = {t: max(w for w, s in zip(weight, token, strict=True) if s == t) for t in token}
        order = sorted(order, key=lambda n: (n % (routing.choices or 1), -best[token[n]]))
    free, kept, waiting = [capacity] * E, [], []
    for n in order:
        if not 0 <= expert[n] < E:
            continue
        if free[expert[n]]:
            free[expert[n]] -= 1
            kept.append((n, expert[n]))
        else:
            waiting.append(n)
    for n in waiting if policy == "reroute" else ():
        has = {e for m, e in kept if token[m] == token[n]}
        usable = [e for e in range(E) if free[e] and e not in has]
        if usable:
            e = max(usable, key=lambda e: routing.probs_TE[token[n], e].item())
            free[e] -= 1
            kept.append((n, e))
    return kept


def slot_loop(layer: mx.MoE, x_TD: Tensor, routing: SlotRouting) -> Tensor:
    """Each sequence by itself: slots are means of its tokens, its tokens means of the slots' outputs."""
    S = routing.dispatch_TS.shape[1]
    L, y = len(x_TD) // routing.sequences, [torch.zeros_like(x) for x in x_TD]
    for start in range(0, len(x_TD), L):
        for s in range(S):
            slot = sum(routing.dispatch_TS[t, s] * x_TD[t] for t in range(start, start + L))
            out = one_expert(layer.experts, s // (S // routing.num_experts), slot.unsqueeze(0).to(x_TD.dtype))[0]
            for t in range(start, start + L):
                y[t] = y[t] + routing.combine_TS[t, s] * out
    return torch.stack(y).to(x_TD.dtype)


def moe_loop(layer: mx.MoE, x_TD: Tensor, routing: mx.Routing) -> Tensor:
    """What the layer must give for this routing."""
    if isinstance(routing, SlotRouting):
        return slot_loop(layer, x_TD, routing)
    y = [torch.zeros_like(x) for x in x_TD]
    for n in range(len(routing.expert_N)):
        t, j = int(routing.token_N[n]), int(routing.expert_N[n]) - routing.num_experts
        if j >= 0:
            y[t] = y[t] + routing.weight_N[n] * null_expert(layer.router, j, x_TD[t])
    if routing.bypass_TD is not None and not routing.null_experts:
        y = [y_D + bypass_D for y_D, bypass_D in zip(y, routing.bypass_TD, strict=True)]
    for n, e in serve(routing, factor=layer.capacity.factor, policy=layer.policy):
        t, asked = int(routing.token_N[n]), int(routing.expert_N[n])
        weight = routing.weight_N[n]
        if e != asked:
            weight = weight * routing.probs_TE[t, e] / routing.probs_TE[t, asked]
        y[t] = y[t] + weight.to(x_TD.dtype) * one_expert(layer.experts, e, x_TD[t : t + 1])[0]
    return torch.stack(y)
