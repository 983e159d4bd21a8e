"""The layer's maths as loops over tokens and choices in plain Python: what every row of the table is compared with."""

import math
from dataclasses import replace

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


def capacity_rows(capacity: mx.Capacity, assignments: int, num_experts: int) -> int:
    """Rows that one expert accepts; as many as there are assignments means all."""
    if capacity.fixed is not None:
        return capacity.fixed
    rows = assignments
    if capacity.factor is not None:
        rows = math.ceil(round(assignments * capacity.factor / num_experts, 9))
        rows = max(math.ceil(rows / capacity.multiple_of) * capacity.multiple_of, capacity.minimum)
    return rows if capacity.maximum is None else min(rows, capacity.maximum)


def serve(
    routing: mx.Routing, *, capacity: mx.Capacity, policy: str, priority: list[float] | None = None
) -> list[tuple[int, int]]:
    """Who finds room: pairs (number of an assignment, the expert it gets), each with the assignment's own token."""
    expert, weight, token = routing.expert_N.tolist(), routing.weight_N.tolist(), routing.token_N.tolist()
    order, E = range(len(expert)), routing.num_experts
    by_score = policy == "priority" or (policy == "reroute" and priority is not None)
    if routing.by_rank and not by_score:
        order = sorted(order, key=lambda n: n % routing.choices)
    if by_score:
        best = {t: max(w for w, s in zip(weight, token, strict=True) if s == t) for t in token}
        score = best if priority is None else priority
        order = sorted(order, key=lambda n: (n % (routing.choices or 1), -score[token[n]]))
    free, kept, waiting = [capacity_rows(capacity, len(expert), E)] * E, [], []
    for n in order:
        if not 0 <= expert[n] < E or (routing.mask_T is not None and not routing.mask_T[token[n]]):
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
    for start in range(0, len(x_TD), max(L, 1)):
        for s in range(S):
            slot = sum(routing.dispatch_TS[t, s] * x_TD[t] for t in range(start, start + L))
            out = one_expert(layer.experts, s // (S // routing.num_experts), slot.unsqueeze(0).to(x_TD.dtype))[0]
            for t in range(start, start + L):
                y[t] = y[t] + routing.combine_TS[t, s] * out
    return torch.stack(y).to(x_TD.dtype) if y else x_TD


def bypass_loop(layer: mx.MoE, x_TD: Tensor, routing: mx.Routing) -> list[Tensor]:
    """What the router itself gives each token: its null experts' outputs, or its residual."""
    y = [torch.zeros_like(x) for x in x_TD]
    if routing.bypass_TD is None:
        return y
    for n in range(len(routing.expert_N)):
        t, j = int(routing.token_N[n]), int(routing.expert_N[n]) - routing.num_experts
        if j >= 0:
            y[t] = y[t] + routing.weight_N[n] * null_expert(layer.router, j, x_TD[t])
    if not routing.null_experts:
        y = list(routing.bypass_TD)
    if routing.mask_T is not None:
        y = [y_D * is_token for y_D, is_token in zip(y, routing.mask_T, strict=True)]
    return y


def highest_loop(routing: mx.Routing) -> mx.Routing:
    """Each token's assignment of the largest weight, with the weight 1; the first of equals."""
    expert = [-1] * len(routing.expert_N)
    for t in range(routing.num_tokens):
        own = [
            n for n in range(len(expert)) if routing.token_N[n] == t and 0 <= routing.expert_N[n] < routing.num_experts
        ]
        if own:
            n = max(own, key=lambda n: routing.weight_N[n].item())
            expert[n] = int(routing.expert_N[n])
    ones = torch.ones_like(routing.weight_N)
    return replace(routing, expert_N=torch.tensor(expert, dtype=torch.long), weight_N=ones, bypass_TD=None)


def shared_loop(layer: mx.MoE, x_TD: Tensor, y_TD: Tensor) -> Tensor:
    """The shared module, weighted by its gate, beside the experts' output."""
    if layer.shared is None:
        return y_TD
    shared_TD = layer.shared(x_TD)
    if layer.shared_gate is None:
        return y_TD + shared_TD
    score = x_TD @ layer.shared_gate.weight.T
    if score.shape[1] == 1:
        return y_TD + shared_TD / (1 + (-score).exp())
    share = score.exp() / score.exp().sum(1, keepdim=True)
    return y_TD * share[:, :1] + shared_TD * share[:, 1:]


def vote_loop(layer: mx.MoE, x_TD: Tensor, routing: mx.Routing, kept: list[tuple[int, int]]) -> Tensor:
    """Each token's experts vote for their largest output."""
    votes = x_TD.new_zeros(x_TD.shape)
    for n, e in kept:
        t = int(routing.token_N[n])
        votes[t, one_expert(layer.experts, e, x_TD[t : t + 1])[0].argmax()] += 1
    return votes / votes.sum(1, keepdim=True).clamp(min=1)


def moe_loop(layer: mx.MoE, x_TD: Tensor, routing: mx.Routing, *, priority: list[float] | None = None) -> Tensor:
    """What the layer must give for this routing."""
    if isinstance(routing, SlotRouting):
        return shared_loop(layer, x_TD, slot_loop(layer, x_TD, routing))
    if layer.pooling == "highest" and not layer.training:
        routing = highest_loop(routing)
    capacity = layer.capacity if layer.training else layer.eval_capacity
    kept = serve(routing, capacity=capacity, policy=layer.policy, priority=priority)
    if layer.pooling == "vote" and not layer.training:
        return vote_loop(layer, x_TD, routing, kept)
    y = bypass_loop(layer, x_TD, routing)
    for n, e in kept:
        t, asked = int(routing.token_N[n]), int(routing.expert_N[n])
        weight = routing.weight_N[n]
        if e != asked:
            weight = weight * routing.probs_TE[t, e] / routing.probs_TE[t, asked]
        y[t] = y[t] + weight.to(x_TD.dtype) * one_expert(layer.experts, e, x_TD[t : t + 1])[0]
    return shared_loop(layer, x_TD, torch.stack(y) if y else x_TD)
