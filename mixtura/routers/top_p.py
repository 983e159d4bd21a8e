"""As many experts as a token needs: the fewest whose probabilities reach a threshold."""

from typing import Unpack

import torch
from torch import Tensor

from mixtura.errors import UserError
from mixtura.routers.base import GateOptions, Router, check_router, top_k
from mixtura.routing import Routing


class TopP(Router):
    """Each token goes to the fewest experts whose probabilities sum to at least `p`, at most `max_k` of them.

    The weights are the probabilities. The list keeps room for `max_k` choices per token, and unused ones are -1: what
    is computed depends on the choices, what is allocated on `max_k`. The loss "entropy" keeps the choices few. Null
    experts (MoE++) count as experts in the sum. Source: Huang et al. 2024 (Harder tasks need more experts), equations
    5 to 8.

    Args:
        dim: D.
        num_experts: E.
        p: the threshold, in (0, 1].
        max_k: the most choices of a token; None: E.
        renormalize: divide the weights by their sum (of the paper: no).
        options: see `Router`.

    Raises:
        UserError: a threshold outside (0, 1], a `max_k` outside 1 to E.

    Example:
        >>> router = TopP(2, num_experts=2, p=0.6)
        >>> _ = torch.nn.init.eye_(router.weight)
        >>> router(torch.tensor([[3.0, 0.0], [0.1, 0.0]])).expert_N.tolist()
        [0, -1, 0, 1]
    """

    takes_k = False
    takes_null_experts = True

    def __init__(
        self,
        dim: int,
        num_experts: int,
        *,
        p: float = 0.4,
        max_k: int | None = None,
        renormalize: bool = False,
        **options: Unpack[GateOptions],
    ) -> None:
        check_router(dim=dim, num_experts=num_experts, k=1)
        if not 0 < p <= 1:
            raise UserError(f"expected 0 < p <= 1, got {p}")
        max_k = num_experts if max_k is None else max_k
        if not 1 <= max_k <= num_experts:
            raise UserError(f"expected 1 <= max_k <= num_experts, got max_k={max_k} with num_experts={num_experts}")
        super().__init__(dim, num_experts, max_k, **options)
        self.p, self.renormalize = p, renormalize

    def forward(self, x_TD: Tensor) -> Routing:
        """Route the tokens: (T, D) -> Routing with up to `max_k` choices each, the others -1."""
        logits_TE = self.logits(x_TD)
        probs_TE = logits_TE.softmax(-1)

        def choose() -> Tensor:
            expert_TK = top_k(logits_TE, self.k)
            p_TK = probs_TE.detach().gather(-1, expert_TK)
            before_TK = torch.nn.functional.pad(p_TK.cumsum(-1)[:, :-1], (1, 0))
            return expert_TK.where(before_TK < self.p, -1)

        expert_TK = self.decide(choose, num_tokens=x_TD.shape[0])
        weight_TK = probs_TE.gather(-1, expert_TK.clamp(min=0)).masked_fill(expert_TK < 0, 0)
        if self.renormalize:
            weight_TK = weight_TK / weight_TK.sum(-1, keepdim=True)
        return self.routing(x_TD, expert_TK, weight_TK, logits_TE=logits_TE, probs_TE=probs_TE, partial=True)

    def extra_repr(self) -> str:
        """Sizes and the threshold, for print(model)."""
        return f"{super().extra_repr()}, p={self.p}"
