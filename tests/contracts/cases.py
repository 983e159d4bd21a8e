"""The table of the contracts: every router, every kind of experts, every dispatch policy. A new one is one row."""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor, nn

import mixtura as mx
from mixtura.routers import NoisyTopK, Router, SigmoidBias, Switch, TopK

D, E = 6, 5


class RouterCase(NamedTuple):
    """How to make a router for (dim, num_experts, k), and what it promises.

    `weight_sum` gives what each token's weights must add up to, from its routing, or None where nothing is promised.
    """

    make: Callable[..., Router]
    one_choice: bool = False
    weight_sum: Callable[[mx.Routing], Tensor] | None = None


def ones(routing: mx.Routing) -> Tensor:
    return routing.probs_TE.new_ones(routing.num_tokens)


def chosen_probability(routing: mx.Routing) -> Tensor:
    expert_TK = routing.expert_N.view(routing.num_tokens, routing.choices)
    return routing.probs_TE.gather(-1, expert_TK).sum(-1)


def chosen_sigmoids(routing: mx.Routing) -> Tensor:
    expert_TK = routing.expert_N.view(routing.num_tokens, routing.choices)
    return routing.logits_TE.sigmoid().gather(-1, expert_TK).sum(-1)


ROUTERS: dict[str, RouterCase] = {
    "topk": RouterCase(TopK, weight_sum=ones),
    "topk softmax first": RouterCase(
        lambda dim, num_experts, k: TopK(dim, num_experts, k, order="softmax_topk"), weight_sum=chosen_probability
    ),
    "topk renormalised": RouterCase(
        lambda dim, num_experts, k: TopK(dim, num_experts, k, order="softmax_topk", renormalize=True), weight_sum=ones
    ),
    "switch": RouterCase(
        lambda dim, num_experts, k: Switch(dim, num_experts), one_choice=True, weight_sum=chosen_probability
    ),
    "switch jitter": RouterCase(
        lambda dim, num_experts, k: Switch(dim, num_experts, jitter=0.1), one_choice=True, weight_sum=chosen_probability
    ),
    "noisy_topk": RouterCase(NoisyTopK, weight_sum=ones),
    "sigmoid_bias": RouterCase(SigmoidBias, weight_sum=ones),
    "sigmoid_bias raw": RouterCase(
        lambda dim, num_experts, k: SigmoidBias(dim, num_experts, k, renormalize=False), weight_sum=chosen_sigmoids
    ),
}


class Sequence(nn.Module):
    """Rows as sequences of one token, for experts that read sequences."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x_ND: Tensor) -> Tensor:
        """(N, D) -> (N, D)."""
        is_recurrent = isinstance(self.module, nn.GRU)
        y = self.module(x_ND.unsqueeze(0 if is_recurrent else 1))
        return y[0][0] if is_recurrent else y[:, 0]


EXPERTS: dict[str, Callable[[int], nn.Module]] = {
    "swiglu": lambda num: mx.GroupedMLP(num_experts=num, dim=D, hidden=8),
    "gelu with bias": lambda num: mx.GroupedMLP(num_experts=num, dim=D, hidden=7, activation="gelu", bias=True),
    "modules": lambda num: mx.ModuleExperts(
        [nn.Linear(D, D) if e % 2 else mx.MLP(dim=D, hidden=5 + e) for e in range(num)]
    ),
    "recurrent and attention": lambda num: mx.ModuleExperts(
        [
            Sequence(nn.TransformerEncoderLayer(D, 2, 8, dropout=0.0, batch_first=True))
            if e % 2
            else Sequence(nn.GRU(D, D))
            for e in range(num)
        ]
    ),
}

POLICIES: dict[str, dict[str, Any]] = {
    "dropless": {},
    "drop": {"capacity_factor": 0.8},
    "priority": {"capacity_factor": 0.8, "policy": "priority"},
}


def build(router: str, experts: str = "swiglu", policy: str = "dropless", *, k: int = 2, num: int = E, **options):
    """A layer of the table whose router has an opinion."""
    case = ROUTERS[router]
    k = 1 if case.one_choice else min(k, num)
    layer = mx.MoE(router=case.make(D, num, k), experts=EXPERTS[experts](num), **{**POLICIES[policy], **options})
    nn.init.normal_(layer.router.weight, std=0.6)
    return layer
