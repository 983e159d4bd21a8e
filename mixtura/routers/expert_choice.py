"""Experts choose tokens, instead of tokens experts."""

import math
from typing import ClassVar, Unpack

import torch
from torch import Tensor

from mixtura.errors import UserError
from mixtura.kernels.grouping import expert_capacity
from mixtura.routers.base import GateOptions, Router
from mixtura.routing import Routing


class ExpertChoice(Router):
    """Each expert takes its C = ceil(T * k * capacity_factor / E) best tokens, at most T, weighted by probability.

    p is the softmax over the experts. Every expert has the same number of rows, so that no loss is needed; a token has
    as many experts as took it, also none. Padding is never taken, though T counts it. Not causal: whether a token is
    taken depends on all others, of all sequences of the batch; a language model sees its future in training and
    generates with another routing than it was trained with.

    The list is (expert, token) pairs, best first, and no token has a fixed number of rows, so that they are added by
    index: on a CPU in their order, the same on every run; on a GPU by atomics, unless
    `torch.use_deterministic_algorithms` is on.

    Source: Zhou et al. 2022 (expert choice), section 3.2.

    Args:
        dim: D.
        num_experts: E.
        k: experts per token on average (the paper's c).
        capacity_factor: multiplies k.
        multiple_of: round C up to a multiple of this (V-MoE: 4).
        options: see `Router`.

    Raises:
        UserError: a factor that is not positive, a multiple below 1.

    Example:
        >>> routing = ExpertChoice(8, num_experts=4, k=2)(torch.randn(10, 8))
        >>> routing.counts_E().tolist(), routing.choices is None
        ([5, 5, 5, 5], True)
    """

    needs_mask: ClassVar[bool] = True
    is_causal: ClassVar[bool] = False

    def __init__(
        self,
        dim: int,
        num_experts: int,
        k: int = 2,
        *,
        capacity_factor: float = 1.0,
        multiple_of: int = 1,
        **options: Unpack[GateOptions],
    ) -> None:
        super().__init__(dim, num_experts, k, **options)
        if not 0 < capacity_factor < math.inf:
            raise UserError(f"expected capacity_factor above 0, got {capacity_factor}; an expert would take no token")
        if multiple_of < 1:
            raise UserError(f"expected multiple_of of at least 1, got {multiple_of}")
        self.capacity_factor, self.multiple_of = capacity_factor, multiple_of

    def forward(self, x_TD: Tensor, mask_T: Tensor | None = None) -> Routing:
        """Route the tokens: (T, D) -> Routing with C tokens for each expert."""
        (T, E), logits_TE = (x_TD.shape[0], self.num_experts), self.logits(x_TD)
        probs_TE = logits_TE.softmax(-1)
        C = expert_capacity(
            T, num_experts=E, k=self.k, factor=self.capacity_factor, multiple_of=self.multiple_of, maximum=T
        )
        score_TE = probs_TE.detach() if mask_T is None else probs_TE.detach().masked_fill(~mask_T.unsqueeze(-1), -1)
        token_EC = self.decide(lambda: score_TE.T.topk(C, dim=-1).indices, num_tokens=T)
        expert_EC = torch.arange(E, device=x_TD.device).unsqueeze(1).expand(token_EC.shape)
        return Routing(
            token_N=token_EC.reshape(-1),
            expert_N=(expert_EC if mask_T is None else expert_EC.where(mask_T[token_EC], -1)).reshape(-1),
            weight_N=probs_TE.T.gather(1, token_EC).reshape(-1),
            logits_TE=logits_TE,
            probs_TE=probs_TE,
            partial=mask_T is not None,
        )

    def decision(self, routing: Routing) -> Tensor:
        """The tokens that each expert took: int64 (E, C)."""
        return routing.token_N.view(routing.num_experts, -1)
