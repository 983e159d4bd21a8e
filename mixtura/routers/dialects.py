"""The gates of FastMoE and of Paddle's incubate MoE, each as its library has it, for parity with models trained there.

Where they differ from the papers, so do these: use `TopK`, `GShard` and `Switch` for the papers' own.
"""

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from mixtura.errors import UserError
from mixtura.kernels.grouping import group, keep_first
from mixtura.routers.base import Router, both_choices, widen
from mixtura.routing import Routing

Dialect = Literal["fastmoe", "paddle"]


class NaiveGate(Router):
    """The K largest logits of a matrix with a bias, nothing dropped.

    FastMoE weights by the softmax over the chosen, Paddle by the raw logits themselves.

    Args:
        dim: D.
        num_experts: E.
        k: K.
        dialect: whose.

    Shapes:
        weight: (E, D). bias: (E,).

    Raises:
        UserError: an unknown dialect.

    Example:
        >>> router = NaiveGate(2, num_experts=2, dialect="paddle")
        >>> _ = nn.init.eye_(router.weight), nn.init.zeros_(router.bias)
        >>> router(torch.tensor([[3.0, -1.0]])).weight_N.tolist()
        [3.0, -1.0]
    """

    def __init__(self, dim: int, num_experts: int, k: int = 2, *, dialect: Dialect = "fastmoe") -> None:
        super().__init__(dim, num_experts, k)
        if dialect not in get_args(Dialect):
            raise UserError(f"expected a dialect among {', '.join(get_args(Dialect))}, got {dialect!r}")
        self.dialect = dialect
        self.bias = nn.Parameter(torch.empty(num_experts))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw matrix and bias as `nn.Linear` does: U(-1, 1) / sqrt(D)."""
        for parameter in (self.weight, self.bias):
            assert parameter is not None
            nn.init.uniform_(parameter, -(self.dim**-0.5), self.dim**-0.5)

    def clean_logits(self, x_TD: Tensor, *context: Tensor) -> Tensor:
        """The matrix and its bias in fp32: (T, E)."""
        return super().clean_logits(x_TD, *context) + widen(self.bias)

    def forward(self, x_TD: Tensor) -> Routing:
        """Route the tokens: (T, D) -> Routing with K choices each."""
        logits_TE = self.logits(x_TD)
        expert_TK = self.top_k(logits_TE)
        return self.routing(
            x_TD, expert_TK, self._scores(logits_TE, expert_TK), logits_TE=logits_TE, probs_TE=logits_TE.softmax(-1)
        )

    def _scores(self, logits_TE: Tensor, expert_TK: Tensor) -> Tensor:
        score_TK = logits_TE.gather(-1, expert_TK)
        return score_TK if self.dialect == "paddle" else score_TK.softmax(-1)

    def extra_repr(self) -> str:
        """Sizes and the dialect, for print(model)."""
        return f"{super().extra_repr()}, dialect={self.dialect}"


class GShardGate(NaiveGate):
    """Two choices with the scores of `NaiveGate`; full experts drop in token order, second choices by chance.

    An expert takes floor(ceil(c T) K / E) assignments in FastMoE and ceil(c T) in Paddle, where c is `capacity`, for
    training and for evaluation. Then, in both modes, a second choice is given up where 2 s < u with u from U(0, 1);
    s is its score, in Paddle thus a raw logit. It has used up its place all the same. The weights of what is left stay
    as they were. The losses are "fastmoe_gshard" and "paddle_gshard".

    Args:
        dim: D.
        num_experts: E; with a single expert there is no second choice.
        dialect: whose.
        capacity: c in training and in evaluation.
        random_routing: give up second choices by chance.

    Raises:
        UserError: an unknown dialect, a capacity that is not positive.

    Example:
        >>> routing = GShardGate(8, num_experts=4)(torch.randn(1, 8))  # floor(ceil(1.2) * 2 / 4) = 1 place each
        >>> routing.partial, routing.expert_N.shape
        (True, torch.Size([2]))
    """

    takes_k = False
    needs_mask = True

    def __init__(
        self,
        dim: int,
        num_experts: int,
        *,
        dialect: Dialect = "fastmoe",
        capacity: tuple[float, float] = (1.2, 2.4),
        random_routing: bool = True,
    ) -> None:
        super().__init__(dim, num_experts, min(2, num_experts), dialect=dialect)
        self.capacity, self.random_routing = _check_capacity(capacity), random_routing

    def forward(self, x_TD: Tensor, *, mask_T: Tensor | None = None) -> Routing:
        """Route the tokens: (T, D) -> Routing with two choices each, -1 where one is given up."""
        logits_TE = self.logits(x_TD)
        rows = math.ceil(self.capacity[not self.training] * x_TD.shape[0])
        if self.dialect == "fastmoe":
            rows = rows * 2 // self.num_experts

        def choose() -> Tensor:
            expert_TK = logits_TE.detach().topk(self.k, dim=-1).indices
            score_TK = self._scores(logits_TE.detach(), expert_TK)
            expert_TK = prune(expert_TK, num_experts=self.num_experts, capacity=rows, mask_T=mask_T)
            if self.random_routing and self.k == 2:
                is_given_up_T = 2 * score_TK[:, 1] < torch.rand_like(score_TK[:, 1])
                expert_TK[:, 1].masked_fill_(is_given_up_T, -1)
            return expert_TK

        expert_TK = self.decide(choose, num_tokens=x_TD.shape[0])
        weight_TK = self._scores(logits_TE, both_choices(logits_TE, expert_TK)).masked_fill(expert_TK < 0, 0)
        return self.routing(
            x_TD, expert_TK, weight_TK, logits_TE=logits_TE, probs_TE=logits_TE.softmax(-1), partial=True
        )


class SwitchGate(NaiveGate):
    """The most probable expert, weighted by its probability; full experts drop in token order.

    In training U[1 - eps, 1 + eps] is *added* to the logits (the paper multiplies the input). An expert takes
    ceil(c T / E) tokens in FastMoE and ceil(c T) in Paddle. The loss of both is "switch_gate".

    Args:
        dim: D.
        num_experts: E.
        dialect: whose.
        capacity: c in training and in evaluation.
        switch_eps: eps.

    Raises:
        UserError: an unknown dialect, a capacity that is not positive, an eps outside [0, 1).

    Example:
        >>> SwitchGate(8, num_experts=4)(torch.zeros(20, 8)).expert_N.shape
        torch.Size([20])
    """

    takes_k = False
    needs_mask = True

    def __init__(
        self,
        dim: int,
        num_experts: int,
        *,
        dialect: Dialect = "fastmoe",
        capacity: tuple[float, float] = (1.2, 2.4),
        switch_eps: float = 0.1,
    ) -> None:
        super().__init__(dim, num_experts, 1, dialect=dialect)
        if not 0 <= switch_eps < 1:
            raise UserError(f"expected 0 <= switch_eps < 1, got {switch_eps}")
        self.capacity, self.switch_eps = _check_capacity(capacity), switch_eps

    def perturb(self, logits_TE: Tensor) -> Tensor:
        """Add the noise, in training only: (T, E)."""
        if not self.training:
            return logits_TE
        return logits_TE + torch.empty_like(logits_TE).uniform_(1 - self.switch_eps, 1 + self.switch_eps)

    def forward(self, x_TD: Tensor, *, mask_T: Tensor | None = None) -> Routing:
        """Route the tokens: (T, D) -> Routing with one choice each, -1 where it is dropped."""
        logits_TE = self.logits(x_TD)
        probs_TE = logits_TE.softmax(-1)
        share = self.capacity[not self.training] * x_TD.shape[0]
        rows = math.ceil(share / self.num_experts if self.dialect == "fastmoe" else share)

        def choose() -> Tensor:
            expert_TK = probs_TE.detach().max(-1, keepdim=True).indices
            return prune(expert_TK, num_experts=self.num_experts, capacity=rows, mask_T=mask_T)

        expert_TK = self.decide(choose, num_tokens=x_TD.shape[0])
        weight_TK = probs_TE.gather(-1, expert_TK.clamp(min=0)).masked_fill(expert_TK < 0, 0)
        return self.routing(x_TD, expert_TK, weight_TK, logits_TE=logits_TE, probs_TE=probs_TE, partial=True)


def prune(expert_TK: Tensor, *, num_experts: int, capacity: int, mask_T: Tensor | None = None) -> Tensor:
    """Set to -1 what comes after an expert's first `capacity` assignments in token order: int64 (T, K).

    Padding takes no place.

    Example:
        >>> prune(torch.tensor([[0, 1], [1, 0], [0, 1]]), num_experts=2, capacity=2).tolist()
        [[0, 1], [1, 0], [-1, -1]]
    """
    route_TK = expert_TK if mask_T is None else expert_TK.where(mask_T.unsqueeze(1), num_experts)
    route_N = route_TK.reshape(-1)
    order_N, counts_E = group(route_N, num_experts=num_experts)
    order_N, counts_E = keep_first(order_N, route_N, counts_E, capacity=capacity)
    is_kept_N = torch.arange(order_N.shape[0], device=order_N.device) < counts_E.sum()
    is_kept_N = torch.empty_like(is_kept_N).scatter_(0, order_N, is_kept_N)
    return expert_TK.where(is_kept_N.view_as(expert_TK), -1)


def _check_capacity(capacity: tuple[float, float]) -> tuple[float, float]:
    if len(capacity) != 2 or not all(c > 0 for c in capacity):
        raise UserError(f"expected capacity above 0 for training and for evaluation, got {capacity}")
    return float(capacity[0]), float(capacity[1])
