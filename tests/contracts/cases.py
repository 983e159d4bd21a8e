"""The table of the contracts: every router, every kind of experts, every dispatch policy. A new one is one row."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import mixtura as mx
from mixtura.routers import (
    Base,
    CosineGate,
    Dense,
    ExpertChoice,
    Gate,
    GShard,
    GShardGate,
    Hard,
    Hash,
    Hierarchical,
    NaiveGate,
    NoisyTopK,
    Random,
    Router,
    SigmoidBias,
    Sinkhorn,
    Soft,
    Switch,
    SwitchGate,
    TopK,
    TopP,
)

D, E = 6, 5


class RouterCase(NamedTuple):
    """How to make a router for (dim, num_experts, k), and what it promises.

    `weight_sum` gives what each token's weights must add up to, from its routing, or None where nothing is promised.
    `mixes` says why one token's routing depends on others in evaluation too, "" where it does not; such a router
    promises nothing of single tokens. `context` makes what the router must know of the tokens (..., D) beside them.
    `num` is E for a router that cannot have the table's.
    `surrogate` says why its gradient is not the derivative of its output; empty: it is.
    """

    make: Callable[..., Router]
    one_choice: bool = False
    weight_sum: Callable[[mx.Routing], Tensor] | None = None
    mixes: str = ""
    context: Callable[[Tensor], Tensor] | None = None
    num: int = E
    surrogate: str = ""


def ones(routing: mx.Routing) -> Tensor:
    return routing.probs_TE.new_ones(routing.num_tokens)


def sum_of_chosen(routing: mx.Routing, values_TE: Tensor) -> Tensor:
    expert_TK = routing.expert_N.view(routing.num_tokens, routing.choices)
    return values_TE.gather(-1, expert_TK.clamp(min=0)).masked_fill(expert_TK < 0, 0).sum(-1)


def chosen_probability(routing: mx.Routing) -> Tensor:
    return sum_of_chosen(routing, routing.probs_TE)


def chosen_sigmoids(routing: mx.Routing) -> Tensor:
    return sum_of_chosen(routing, routing.logits_TE.sigmoid())


def chosen_logits(routing: mx.Routing) -> Tensor:
    return sum_of_chosen(routing, routing.logits_TE)


def share_of_the_best_two(routing: mx.Routing) -> Tensor:
    return chosen_probability(routing) / routing.probs_TE.topk(min(2, routing.num_experts)).values.sum(-1)


def number_by_content(x: Tensor) -> Tensor:
    """An id for each token that depends on nothing but the token."""
    return (x[..., 0].float().nan_to_num() * 100).long()


class TaskGate(nn.Module):
    """A matrix per task: the last digit of the token's number says whose."""

    def __init__(self, dim: int, num: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, num, dim))

    def forward(self, x_TD: Tensor, task_T: Tensor) -> Tensor:
        return torch.einsum("td,ted->te", x_TD, self.weight[task_T % 2])


def mlp_gate(dim: int, num: int, k: int) -> Gate:
    mlp = nn.Sequential(nn.Linear(dim, 8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, num))
    return Gate(mlp, dim=dim, num_experts=num, k=k)


def tree(dim: int, num: int, k: int, **options: Any) -> Hierarchical:
    """Two groups of three; of other numbers of experts one group."""
    branching = (2, 3) if num == 6 else (1, num)
    level_k = branching if k == E else (min(k, branching[0]), 1)
    return Hierarchical(dim, num, branching=branching, k=level_k, **options)


NULL_EXPERTS = {"zero": 1, "copy": 1, "constant": 2}
FULL = "experts fill up in token order"


def sigmoids_or_probability(routing: mx.Routing) -> Tensor:
    return chosen_sigmoids(routing) if routing.choices == 1 else chosen_probability(routing)


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
    "expert_choice": RouterCase(ExpertChoice, mixes="each expert chooses among all tokens"),
    "sinkhorn": RouterCase(Sinkhorn, weight_sum=sigmoids_or_probability),
    "base": RouterCase(
        lambda dim, num_experts, k: Base(dim, num_experts, rounds=8), one_choice=True, weight_sum=chosen_sigmoids
    ),
    "soft": RouterCase(
        lambda dim, num_experts, k: Soft(dim, num_experts, slots_per_expert=2),
        mixes="each slot is a mean of all tokens",
    ),
    "topk noise": RouterCase(lambda dim, num, k: TopK(dim, num, k, noise="1/E"), weight_sum=ones),
    "topk null experts": RouterCase(
        lambda dim, num, k: TopK(dim, num, k, order="softmax_topk", null_experts=NULL_EXPERTS),
        weight_sum=chosen_probability,
    ),
    "dense": RouterCase(lambda dim, num, k: Dense(dim, num), weight_sum=ones),
    "hard": RouterCase(
        lambda dim, num, k: Hard(dim, num),
        one_choice=True,
        weight_sum=ones,
        surrogate="the weight 1 has the probability's gradient",
    ),
    "gshard": RouterCase(lambda dim, num, k: GShard(dim, num), weight_sum=share_of_the_best_two),
    "top_p": RouterCase(lambda dim, num, k: TopP(dim, num, p=0.5, max_k=k), weight_sum=chosen_probability),
    "top_p null experts": RouterCase(
        lambda dim, num, k: TopP(dim, num, p=0.5, max_k=k, renormalize=True, null_experts=NULL_EXPERTS),
        weight_sum=ones,
    ),
    "hash": RouterCase(
        lambda dim, num, k: Hash(dim, num, k, vocab_size=50), weight_sum=ones, context=number_by_content
    ),
    "random": RouterCase(Random, weight_sum=ones, mixes="every forward draws anew"),
    "hierarchical": RouterCase(tree, weight_sum=chosen_probability, num=6),
    "hierarchical renormalised": RouterCase(
        lambda dim, num, k: tree(dim, num, k, renormalize=True), weight_sum=ones, num=6
    ),
    "gate mlp": RouterCase(mlp_gate, weight_sum=ones),
    "gate cosine": RouterCase(
        lambda dim, num, k: Gate(CosineGate(dim, num), dim=dim, num_experts=num, k=k), weight_sum=ones
    ),
    "gate per task": RouterCase(
        lambda dim, num, k: Gate(TaskGate(dim, num), dim=dim, num_experts=num, k=k, needs_context=True),
        weight_sum=ones,
        context=number_by_content,
    ),
    "naive_gate": RouterCase(NaiveGate, weight_sum=ones),
    "naive_gate paddle": RouterCase(
        lambda dim, num, k: NaiveGate(dim, num, k, dialect="paddle"), weight_sum=chosen_logits
    ),
    "gshard_gate": RouterCase(lambda dim, num, k: GShardGate(dim, num, capacity=(0.6, 0.6)), mixes=FULL),
    "gshard_gate paddle": RouterCase(
        lambda dim, num, k: GShardGate(dim, num, dialect="paddle", capacity=(0.3, 0.3)),
        weight_sum=chosen_logits,
        mixes=FULL,
    ),
    "switch_gate": RouterCase(
        lambda dim, num, k: SwitchGate(dim, num, capacity=(0.6, 0.6)),
        one_choice=True,
        weight_sum=chosen_probability,
        mixes=FULL,
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
    "reroute": {"capacity_factor": 0.8, "policy": "reroute"},
    "reroute with room": {"capacity_factor": 1.25, "policy": "reroute"},
}


def build(router: str, experts: str = "swiglu", policy: str = "dropless", *, k: int = 2, num: int = E, **options):
    """A layer of the table whose router has an opinion."""
    case = ROUTERS[router]
    num = case.num if num == E else num
    k = 1 if case.one_choice else min(k, num)
    layer = mx.MoE(router=case.make(D, num, k), experts=EXPERTS[experts](num), **{**POLICIES[policy], **options})
    if layer.router.weight is not None:
        nn.init.normal_(layer.router.weight, std=0.6)
    if case.context is not None:
        give_context(layer, case.context)
    return layer


def give_context(layer: mx.MoE, context: Callable[[Tensor], Tensor]) -> None:
    """Let layer and router be called with the tokens alone, as the others of the table."""

    def of(name: str):
        return lambda module, args, known: (args, {name: context(args[0]), **known})

    layer.register_forward_pre_hook(of("context"), with_kwargs=True)
    layer.router.register_forward_pre_hook(of("context_T"), with_kwargs=True)
