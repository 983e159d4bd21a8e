"""The two ends of the softmax routers: every expert by its probability, and the one best expert alone."""

from typing import Unpack

from torch import Tensor

from mixtura.routers.base import GateOptions, Router
from mixtura.routing import Routing


class Dense(Router):
    """Each token goes to every expert, weighted by its probability: soft routing, the mixture of 1991.

    Source: Jacobs et al. 1991 (Adaptive mixtures of local experts), equation 1.

    Args:
        dim: D.
        num_experts: E.
        options: see `Router`.

    Example:
        >>> import torch
        >>> routing = Dense(8, num_experts=4)(torch.zeros(1, 8))
        >>> sorted(routing.expert_N.tolist()), routing.weight_N.tolist()
        ([0, 1, 2, 3], [0.25, 0.25, 0.25, 0.25])
    """

    takes_k = False

    def __init__(self, dim: int, num_experts: int, **options: Unpack[GateOptions]) -> None:
        super().__init__(dim, num_experts, num_experts, **options)

    def forward(self, x_TD: Tensor) -> Routing:
        """Route the tokens: (T, D) -> Routing with E choices each."""
        logits_TE = self.logits(x_TD)
        probs_TE, expert_TK = logits_TE.softmax(-1), self.top_k(logits_TE)
        return self.routing(x_TD, expert_TK, probs_TE.gather(-1, expert_TK), logits_TE=logits_TE, probs_TE=probs_TE)


class Hard(Router):
    """Each token goes to its most probable expert, with weight exactly 1.

    On the way back the weight is that expert's probability (the straight-through estimator of Bengio et al. 2013), so
    that the task teaches the router all the same.

    Args:
        dim: D.
        num_experts: E.
        options: see `Router`.

    Example:
        >>> import torch
        >>> Hard(8, num_experts=4)(torch.randn(2, 8)).weight_N.tolist()
        [1.0, 1.0]
    """

    takes_k = False

    def __init__(self, dim: int, num_experts: int, **options: Unpack[GateOptions]) -> None:
        super().__init__(dim, num_experts, 1, **options)

    def forward(self, x_TD: Tensor) -> Routing:
        """Route the tokens: (T, D) -> Routing with one choice each."""
        logits_TE = self.logits(x_TD)
        probs_TE, expert_TK = logits_TE.softmax(-1), self.top_k(logits_TE)
        best_TK = probs_TE.gather(-1, expert_TK)
        weight_TK = 1 + (best_TK - best_TK.detach())
        return self.routing(x_TD, expert_TK, weight_TK, logits_TE=logits_TE, probs_TE=probs_TE)
