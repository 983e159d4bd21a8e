"""Token choice by a softmax: TopK; Gate and Switch as TopK with another gate or one choice; noise that is learned."""

from typing import Literal, Unpack

import torch
from torch import Tensor, nn

from mixtura.errors import UserError
from mixtura.kernels.choice import can_fuse_router
from mixtura.routers.base import GateOptions, Router, warn_of_constant_weight, widen
from mixtura.routing import Routing

Order = Literal["softmax_topk", "topk_softmax"]


class TopK(Router):
    """Each token goes to its K best experts.

    Args:
        dim: D.
        num_experts: E.
        k: K.
        order: "topk_softmax": softmax over the K chosen logits (Shazeer et al. 2017; Mixtral).
            "softmax_topk": the K largest of the softmax over all experts (Switch, OLMoE, V-MoE).
        renormalize: divide the weights of "softmax_topk" by their sum (Qwen3-MoE; equal to "topk_softmax").
        options: see `Router`. With `noise`, choice and weights follow the noisy logits; `load_TE` is then the
            probability that new noise would lift the expert over the K-th best noisy logit (Riquelme et al. 2021,
            appendix A.2).

    Raises:
        UserError: an unknown order, or sizes that `check_router` refuses.

    Example:
        >>> routing = TopK(8, num_experts=4, k=2)(torch.randn(3, 8))
        >>> routing.expert_N.shape, routing.choices
        (torch.Size([6]), 2)
    """

    takes_null_experts = True

    def __init__(
        self,
        dim: int,
        num_experts: int,
        k: int = 2,
        *,
        order: Order = "topk_softmax",
        renormalize: bool = False,
        **options: Unpack[GateOptions],
    ) -> None:
        super().__init__(dim, num_experts, k, **options)
        if order not in ("softmax_topk", "topk_softmax"):
            raise UserError(f'expected order "topk_softmax" or "softmax_topk", got {order!r}')
        if k == 1 and num_experts > 1 and (order == "topk_softmax" or renormalize):
            warn_of_constant_weight()
        self.order, self.renormalize = order, renormalize

    def forward(self, x_TD: Tensor) -> Routing:
        """Route the tokens: (T, D) -> Routing with K choices each."""
        return self._choose(x_TD, self.clean_logits(x_TD))

    def _choose(self, x_TD: Tensor, clean_TE: Tensor) -> Routing:
        logits_TE = self.perturb(clean_TE)
        is_noisy = logits_TE is not clean_TE
        if not is_noisy and can_fuse_router(clean_TE, k=self.k):
            return self._choose_fused(x_TD, clean_TE)
        clean_probs_TE, expert_TK = clean_TE.softmax(-1), self.top_k(logits_TE)
        needs_own = is_noisy and self.order == "softmax_topk"
        probs_TE = logits_TE.softmax(-1) if needs_own else clean_probs_TE
        weight_TK = self._weights(logits_TE, probs_TE, expert_TK)
        load_TE = None
        if is_noisy and self.k < self.num_logits:
            load_TE = torch.special.ndtr((clean_TE - logits_TE.topk(self.k).values[:, -1:]) / self.noise)
        return self.routing(x_TD, expert_TK, weight_TK, logits_TE=clean_TE, probs_TE=clean_probs_TE, load_TE=load_TE)

    def _choose_fused(self, x_TD: Tensor, logits_TE: Tensor) -> Routing:
        from mixtura.kernels.triton.router import route

        over = "chosen" if self.order == "topk_softmax" or self.renormalize else "all"
        probs_TE, weight_TK, chosen_TK, _ = route(logits_TE, k=self.k, over=over)
        expert_TK = self.decide(lambda: chosen_TK, num_tokens=x_TD.shape[0])
        if expert_TK is not chosen_TK:  # a replay decided
            weight_TK = self._weights(logits_TE, probs_TE, expert_TK)
        return self.routing(x_TD, expert_TK, weight_TK, logits_TE=logits_TE, probs_TE=probs_TE)

    def _weights(self, logits_TE: Tensor, probs_TE: Tensor, expert_TK: Tensor) -> Tensor:
        if self.order == "topk_softmax":
            return logits_TE.gather(-1, expert_TK).softmax(-1)
        weight_TK = probs_TE.gather(-1, expert_TK)
        return weight_TK / weight_TK.sum(-1, keepdim=True) if self.renormalize else weight_TK


class Gate(TopK):
    """`TopK` over the logits of any module (T, D) -> (T, E): an MLP with dropout, a cosine gate, a gate per task.

    Every other router takes such a module too, as its argument `gate`.

    Args:
        module: the gate. With `needs_context` it is called as `module(x_TD, context_T)`.
        dim: D.
        num_experts: E.
        k: K.
        order: see `TopK`.
        renormalize: see `TopK`.
        needs_context: hand the gate what `MoE.forward` was given as `context`, a task number for instance.
        options: see `Router`.

    Raises:
        UserError: see `TopK`; in `forward`, logits of another shape than (T, E).

    Example:
        >>> mlp = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 4))
        >>> Gate(mlp, dim=8, num_experts=4, k=2)(torch.randn(3, 8)).choices
        2
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        dim: int,
        num_experts: int,
        k: int = 2,
        order: Order = "topk_softmax",
        renormalize: bool = False,
        needs_context: bool = False,
        **options: Unpack[GateOptions],
    ) -> None:
        options["gate"] = module
        super().__init__(dim, num_experts, k, order=order, renormalize=renormalize, **options)
        self.needs_context = needs_context

    def forward(self, x_TD: Tensor, *, context_T: Tensor | None = None) -> Routing:
        """Route the tokens: (T, D) -> Routing with K choices each."""
        context = () if context_T is None else (context_T,)
        return self._choose(x_TD, self.clean_logits(x_TD, *context))


class Switch(TopK):
    """Each token goes to its best expert, weighted by that expert's probability.

    Its loss is "load_balance" (coefficient 1e-2 in the paper). Source: Fedus et al. 2021, section 2.1.

    Args:
        dim: D.
        num_experts: E.
        options: see `Router`. The paper uses a jitter of 1e-2; the default `init_std` is its scale, sqrt(0.1 / D).

    Example:
        >>> routing = Switch(8, num_experts=4)(torch.zeros(1, 8))
        >>> routing.weight_N.tolist()
        [0.25]
    """

    takes_k = False

    def __init__(self, dim: int, num_experts: int, **options: Unpack[GateOptions]) -> None:
        options.setdefault("init_std", (0.1 / dim) ** 0.5 if dim > 0 else None)
        super().__init__(dim, num_experts, 1, order="softmax_topk", **options)


class NoisyTopK(Router):
    """Noise with a learned size per expert before the choice, in training only.

    l~ = l + eps * (softplus(x W_noise) + 1e-2); the K largest of l~ are chosen, weighted by their softmax. `load_TE` is
    the probability that token t would still choose expert e if e's noise were drawn again, the others' being fixed.
    Its losses are "importance" and "load". Source: Shazeer et al. 2017, equations 3 to 5 and appendix A.

    Args:
        dim: D.
        num_experts: E.
        k: K.
        options: see `Router`; the default `init_std` is 0, as the paper starts.

    Example:
        >>> router = NoisyTopK(8, num_experts=4, k=2)
        >>> router(torch.randn(3, 8)).load_TE.shape
        torch.Size([3, 4])
        >>> router.eval()(torch.randn(3, 8)).load_TE is None
        True
    """

    noise_floor = 1e-2

    def __init__(self, dim: int, num_experts: int, k: int = 2, **options: Unpack[GateOptions]) -> None:
        options.setdefault("init_std", 0.0)
        super().__init__(dim, num_experts, k, **options)
        self.noise_weight = torch.nn.Parameter(torch.zeros(num_experts, dim))

    def reset_parameters(self) -> None:
        """Draw the weights afresh and set those of the noise to zero."""
        super().reset_parameters()
        torch.nn.init.zeros_(self.noise_weight)

    def forward(self, x_TD: Tensor) -> Routing:
        """Route the tokens: (T, D) -> Routing with K choices each."""
        clean_TE = self.logits(x_TD)
        noisy_TE, load_TE = clean_TE, None
        if self.training:
            with torch.autocast(x_TD.device.type, enabled=False):
                std_TE = torch.nn.functional.linear(widen(x_TD), widen(self.noise_weight))
                std_TE = torch.nn.functional.softplus(std_TE) + self.noise_floor
            noisy_TE = clean_TE + torch.randn_like(clean_TE) * std_TE
            if self.k < self.num_experts:
                load_TE = _probability_of_choice(clean_TE, noisy_TE, std_TE, k=self.k)
        expert_TK = self.top_k(noisy_TE)
        weight_TK = noisy_TE.gather(-1, expert_TK).softmax(-1)
        return Routing.from_choices(
            expert_TK, weight_TK, logits_TE=clean_TE, probs_TE=clean_TE.softmax(-1), load_TE=load_TE
        )


def _probability_of_choice(clean_TE: Tensor, noisy_TE: Tensor, std_TE: Tensor, *, k: int) -> Tensor:
    """Phi((l - threshold) / sigma): the threshold is the K-th best among the *other* experts' noisy logits."""
    best = noisy_TE.topk(k + 1, dim=-1)
    kth, next_best = best.values[:, k - 1 : k], best.values[:, k:]
    is_chosen_TE = torch.zeros_like(noisy_TE, dtype=torch.bool).scatter_(-1, best.indices[:, :k], 1)
    threshold_TE = torch.where(is_chosen_TE, next_best, kth)
    probability_TE: Tensor = torch.special.ndtr((clean_TE - threshold_TE) / std_TE)
    return probability_TE
