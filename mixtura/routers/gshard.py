"""GShard: two experts per token, the second one by chance."""

from dataclasses import replace
from typing import Literal, Unpack, get_args

import torch
from torch import Tensor

from mixtura.errors import UserError
from mixtura.routers.base import GateOptions, Router, both_choices, top_k
from mixtura.routing import Routing

When = Literal["training", "always", "never"]


class GShard(Router):
    """Each token goes to its best expert, and to the second one with probability min(1, 2 g_2).

    g_1 and g_2 are the two largest probabilities over their sum; a second choice that is given up leaves g_1 as it was
    and takes no room. Where a capacity is set, all first choices are served before any second choice. Its loss is
    "gshard". Source: Lepikhin et al. 2020, algorithm 1.

    Args:
        dim: D.
        num_experts: E; with a single expert there is no second choice.
        random_second: when second choices are drawn by chance; otherwise all are kept.
        options: see `Router`.

    Raises:
        UserError: an unknown `random_second`.

    Example:
        >>> router = GShard(8, num_experts=4).eval()
        >>> routing = router(torch.randn(3, 8))
        >>> routing.choices, routing.by_rank, (routing.expert_N >= 0).all().item()
        (2, True, True)
    """

    takes_k = False

    def __init__(
        self, dim: int, num_experts: int, *, random_second: When = "training", **options: Unpack[GateOptions]
    ) -> None:
        super().__init__(dim, num_experts, min(2, num_experts), **options)
        if random_second not in get_args(When):
            raise UserError(f"expected random_second among {', '.join(get_args(When))}, got {random_second!r}")
        self.random_second = random_second

    def forward(self, x_TD: Tensor) -> Routing:
        """Route the tokens: (T, D) -> Routing with two choices each, of which the second may be -1."""
        logits_TE = self.logits(x_TD)
        probs_TE = logits_TE.softmax(-1)
        is_random = self.random_second == "always" or (self.random_second == "training" and self.training)

        def choose() -> Tensor:
            expert_TK = top_k(logits_TE, self.k)
            if self.k == 1 or not is_random:
                return expert_TK
            g_TK = _normalised(probs_TE.detach(), expert_TK)
            is_kept_T = 2 * g_TK[:, 1] > torch.rand_like(g_TK[:, 1])
            return torch.stack([expert_TK[:, 0], expert_TK[:, 1].where(is_kept_T, -1)], dim=1)

        expert_TK = self.decide(choose, num_tokens=x_TD.shape[0])
        weight_TK = _normalised(probs_TE, both_choices(logits_TE, expert_TK)).masked_fill(expert_TK < 0, 0)
        routing = self.routing(
            x_TD, expert_TK, weight_TK, logits_TE=logits_TE, probs_TE=probs_TE, partial=is_random and self.k > 1
        )
        return replace(routing, by_rank=True)


def _normalised(probs_TE: Tensor, expert_TK: Tensor) -> Tensor:
    g_TK = probs_TE.gather(-1, expert_TK)
    return g_TK / g_TK.sum(-1, keepdim=True)
