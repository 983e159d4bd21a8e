"""Token choice that balances the experts by itself in training: by entropic transport, or by an exact assignment."""

from dataclasses import replace
from typing import ClassVar, Literal, Unpack, get_args

import torch
from torch import Tensor

from mixtura.errors import UserError
from mixtura.kernels.assignment import auction, balancing_prices, even_capacity
from mixtura.routers.base import GateOptions, Router, top_k, widen
from mixtura.routing import Routing

Score = Literal["sigmoid", "softmax"]


class Sinkhorn(Router):
    """In training the top K of the balanced transport plan between tokens and experts, in evaluation of the logits.

    The plan softmax(l - price) has rows that sum to 1 and, up to the iterations, columns that sum to T / E; nothing is
    differentiated through it. Weights are the *unbalanced* scores of the chosen experts, not renormalised. In training
    the choice of a token depends on all others; in evaluation it does not. No loss is needed.

    Source: Clark et al. 2022 (unified scaling laws for routed language models), section 3.1 (S-BASE), with softmax
    weights; the sigmoid for K = 1 is Megatron-LM's, whose convergence test became a fixed number of iterations.

    Args:
        dim: D.
        num_experts: E.
        k: K.
        score: the weights: "sigmoid" of the chosen logits, or their "softmax" over all experts; None: sigmoid for
            K = 1, else softmax, as Megatron-LM does.
        iterations: of Sinkhorn's algorithm. Always all of them, so that nothing waits for a device.
        options: see `Router`.

    Raises:
        UserError: an unknown score, no iteration.

    Example:
        >>> router, x = Sinkhorn(2, num_experts=2, k=1), torch.tensor([[3.0, 0.0], [2.0, 0.0], [1.0, 0.0], [1.0, 0.1]])
        >>> _ = router.weight.data.copy_(torch.eye(2))
        >>> router(x).expert_N.tolist(), router.eval()(x).expert_N.tolist()
        ([0, 0, 1, 1], [0, 0, 0, 0])
    """

    needs_mask: ClassVar[bool] = True

    def __init__(
        self,
        dim: int,
        num_experts: int,
        k: int = 1,
        *,
        score: Score | None = None,
        iterations: int = 16,
        **options: Unpack[GateOptions],
    ) -> None:
        super().__init__(dim, num_experts, k, **options)
        if score is not None and score not in get_args(Score):
            raise UserError(f'expected score "sigmoid", "softmax" or None, got {score!r}')
        if iterations < 1:
            raise UserError(f"expected iterations of at least 1, got {iterations}")
        self.score: Score = score or ("sigmoid" if k == 1 else "softmax")
        self.iterations = iterations

    def forward(self, x_TD: Tensor, mask_T: Tensor | None = None) -> Routing:
        """Route the tokens: (T, D) -> Routing with K choices each."""
        logits_TE = self.logits(x_TD)
        expert_TK = self.decide(lambda: self._choose(logits_TE.detach(), mask_T), num_tokens=x_TD.shape[0])
        score_TE = logits_TE.sigmoid() if self.score == "sigmoid" else logits_TE.softmax(-1)
        probs_TE = score_TE / (score_TE.sum(-1, keepdim=True) + 1e-20) if self.score == "sigmoid" else score_TE
        return Routing.from_choices(expert_TK, score_TE.gather(-1, expert_TK), logits_TE=logits_TE, probs_TE=probs_TE)

    def _choose(self, logits_TE: Tensor, mask_T: Tensor | None) -> Tensor:
        if self.training:
            logits_TE = logits_TE - balancing_prices(logits_TE, iterations=self.iterations, mask_T=mask_T)
        return top_k(logits_TE, self.k)


class Base(Router):
    """In training the assignment of tokens to experts with the largest sum of logits in which all have equally many.

    Every expert gets T / E tokens; where E does not divide T, the most wanted ones get one more. In evaluation each
    token goes to its best expert. The layer gives a * f(x) + (1 - a) * x with a = sigmoid(l) of the expert that it got:
    experts must keep the width. In training the choice of a token depends on all others; in evaluation it does not. No
    loss is needed.

    The assignment is found by an auction whose prices start from entropic transport: the sum of logits is at most
    T * epsilon standard deviations of a logit below the largest one, if the rounds suffice (in practice within a
    hundredth of a deviation per token); see `auction`.

    Source: Lewis et al. 2021 (BASE layers), sections 3.1 and 3.2.

    Args:
        dim: D.
        num_experts: E.
        epsilon: smallest raise of the auction, in standard deviations of the logits.
        rounds: of the auction, at most.
        options: see `Router`.

    Raises:
        UserError: an epsilon that is not positive, no round.

    Example:
        >>> routing = Base(8, num_experts=4)(torch.randn(10, 8))
        >>> sorted(routing.counts_E().tolist()), routing.bypass_TD.shape
        ([2, 2, 3, 3], torch.Size([10, 8]))
    """

    takes_k: ClassVar[bool] = False
    needs_mask: ClassVar[bool] = True

    def __init__(
        self,
        dim: int,
        num_experts: int,
        *,
        epsilon: float = 0.2,
        rounds: int = 32,
        **options: Unpack[GateOptions],
    ) -> None:
        super().__init__(dim, num_experts, 1, **options)
        if not epsilon > 0:
            raise UserError(f"expected epsilon above 0, got {epsilon}")
        if rounds < 1:
            raise UserError(f"expected rounds of at least 1, got {rounds}")
        self.epsilon, self.rounds = epsilon, rounds

    def forward(self, x_TD: Tensor, mask_T: Tensor | None = None) -> Routing:
        """Route the tokens: (T, D) -> Routing with one choice each."""
        logits_TE = self.logits(x_TD)
        expert_T1 = self.decide(lambda: self._choose(logits_TE.detach(), mask_T), num_tokens=x_TD.shape[0])
        weight_T1 = logits_TE.gather(-1, expert_T1).sigmoid()
        routing = Routing.from_choices(expert_T1, weight_T1, logits_TE=logits_TE, probs_TE=logits_TE.softmax(-1))
        return replace(routing, bypass_TD=(1 - weight_T1) * widen(x_TD))

    def _choose(self, logits_TE: Tensor, mask_T: Tensor | None) -> Tensor:
        if not self.training or logits_TE.shape[0] == 0:
            return top_k(logits_TE, 1)
        expert_T = balanced_assignment(logits_TE, epsilon=self.epsilon, rounds=self.rounds, mask_T=mask_T)
        return expert_T.unsqueeze(1)


def balanced_assignment(score_TE: Tensor, *, epsilon: float, rounds: int, mask_T: Tensor | None = None) -> Tensor:
    """Each expert gets equally many tokens, up to one, with the largest sum of scores that an auction finds: (T,).

    Example:
        >>> scores = torch.tensor([[2.0, 1.0], [3.0, 0.0], [2.5, 1.0]])
        >>> balanced_assignment(scores, epsilon=0.01, rounds=64).tolist()
        [1, 0, 0]
    """
    T = score_TE.shape[0]
    real_TE = score_TE if mask_T is None else score_TE.masked_fill(~mask_T.unsqueeze(-1), 0)
    spread = real_TE.std(correction=0).clamp(min=torch.finfo(score_TE.dtype).eps)
    price_E = None
    # From warm to cold: the first stages find the level of the prices, the last ones their order.
    for temperature in (1.0, 0.3, 0.1):
        price_E = balancing_prices(
            score_TE, iterations=8, temperature=temperature * spread, price_E=price_E, mask_T=mask_T
        )
    assert price_E is not None
    capacity_E = even_capacity(price_E, T if mask_T is None else mask_T.sum())
    return auction(score_TE, capacity_E, price_E=price_E, epsilon=epsilon * spread, rounds=rounds, mask_T=mask_T)
