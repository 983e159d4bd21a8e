"""Gates in a tree: a gate over groups of experts, gates inside the groups, to any depth."""

import math
from collections.abc import Sequence
from typing import Unpack

import torch
from torch import Tensor

from mixtura.errors import UserError
from mixtura.routers.base import GateOptions, Router, check_router
from mixtura.routing import Routing


class Hierarchical(Router):
    """At each node of a tree a softmax gate chooses among its children; the leaves are the experts.

    A leaf's weight is the product of the gates' probabilities on its path. With `k` equal to `branching` every leaf is
    chosen: the hierarchical mixture of experts as a layer. All gates are one matrix: node by node, level by level.

    `probs_TE` is each leaf's probability, `logits_TE` the sum of the logits on its path. Source: Jordan and Jacobs
    1994, equations 1 to 4; sparse, Shazeer et al. 2017, appendix B.

    Args:
        dim: D.
        num_experts: E, the product of `branching`.
        branching: children of a node on each level, from the root; None: two levels as even as E allows.
        k: how many of them a token chooses on each level; None: two groups, and one in each further level.
        renormalize: each gate's probabilities are normalised over its chosen children (Shazeer et al.: yes).
        options: see `Router`. A gate of one's own gives the logits of all nodes: (T, b_1 + b_1 b_2 + ...).

    Raises:
        UserError: a branching whose product is not E; a `k` of another length, or with more than there are.

    Example:
        >>> router = Hierarchical(8, num_experts=32, branching=(4, 8), k=(2, 1))
        >>> router.weight.shape, router(torch.randn(3, 8)).choices
        (torch.Size([36, 8]), 2)
    """

    takes_k = False

    def __init__(
        self,
        dim: int,
        num_experts: int,
        *,
        branching: Sequence[int] | None = None,
        k: Sequence[int] | None = None,
        renormalize: bool = False,
        **options: Unpack[GateOptions],
    ) -> None:
        check_router(dim=dim, num_experts=num_experts, k=1)
        # Before the base builds the matrix: its rows are all nodes but the root.
        self.branching = _even(num_experts) if branching is None else _sizes("branching", branching)
        self.level_k = _default_k(self.branching) if k is None else _sizes("k", k)
        _check_tree(self.branching, self.level_k, num_experts=num_experts)
        super().__init__(dim, num_experts, math.prod(self.level_k), **options)
        self.renormalize = renormalize

    @property
    def num_logits(self) -> int:
        """Nodes of the tree without its root."""
        return sum(math.prod(self.branching[: level + 1]) for level in range(len(self.branching)))

    def forward(self, x_TD: Tensor) -> Routing:
        """Route the tokens: (T, D) -> Routing with K choices each, the product of each level's k."""
        levels = self._levels(self.logits(x_TD))
        logits_TE = probs_TE = None
        for logits_TPb in levels:
            probs_TPb = logits_TPb.softmax(-1)
            logits_TE = logits_TPb if logits_TE is None else logits_TPb + logits_TE.unsqueeze(-1)
            probs_TE = probs_TPb if probs_TE is None else probs_TPb * probs_TE.unsqueeze(-1)
            logits_TE, probs_TE = logits_TE.flatten(1), probs_TE.flatten(1)
        assert logits_TE is not None
        assert probs_TE is not None
        expert_TK = self.decide(lambda: self._choose([level.detach() for level in levels]), num_tokens=x_TD.shape[0])
        return self.routing(x_TD, expert_TK, self._weights(levels, expert_TK), logits_TE=logits_TE, probs_TE=probs_TE)

    def _levels(self, logits: Tensor) -> list[Tensor]:
        """Cut (T, nodes) into one tensor per level: (T, P, b), P parents with b children each."""
        nodes = [math.prod(self.branching[: level + 1]) for level in range(len(self.branching))]
        parts = logits.split(nodes, dim=1)
        return [part.unflatten(1, (-1, b)) for part, b in zip(parts, self.branching, strict=True)]

    def _choose(self, levels: Sequence[Tensor]) -> Tensor:
        """Walk down from the root with the best k children of every chosen node: leaves (T, K), by falling weight."""
        node_TK = torch.zeros(levels[0].shape[0], 1, dtype=torch.int64, device=levels[0].device)
        for logits_TPb, k in zip(levels, self.level_k, strict=True):
            b = logits_TPb.shape[-1]
            children_TKb = logits_TPb.gather(1, node_TK.unsqueeze(-1).expand(-1, -1, b))
            node_TK = (node_TK.unsqueeze(-1) * b + children_TKb.topk(k, dim=-1).indices).flatten(1)
        order_TK = self._weights(levels, node_TK).argsort(dim=-1, descending=True, stable=True)
        return node_TK.gather(1, order_TK)

    def _weights(self, levels: Sequence[Tensor], leaf_TK: Tensor) -> Tensor:
        """The product of the gates on each leaf's path: (T, K)."""
        weight_TK, below = torch.ones_like(leaf_TK, dtype=levels[0].dtype), self.num_experts
        for logits_TPb in levels:
            below //= logits_TPb.shape[-1]
            node_TK = leaf_TK // below
            if self.renormalize:
                is_chosen = torch.zeros_like(logits_TPb, dtype=torch.bool).flatten(1).scatter(1, node_TK, value=True)
                is_chosen_TPb = is_chosen.view_as(logits_TPb)
                # A node off the path keeps all its children, since a softmax over none is no number.
                is_out_TPb = ~is_chosen_TPb & is_chosen_TPb.any(-1, keepdim=True)
                logits_TPb = logits_TPb.masked_fill(is_out_TPb, -torch.inf)
            weight_TK = weight_TK * logits_TPb.softmax(-1).flatten(1).gather(1, node_TK)
        return weight_TK

    def extra_repr(self) -> str:
        """Sizes, for print(model)."""
        return f"dim={self.dim}, num_experts={self.num_experts}, branching={self.branching}, k={self.level_k}"


def _sizes(name: str, sizes: Sequence[int]) -> tuple[int, ...]:
    if not isinstance(sizes, Sequence) or not all(isinstance(size, int) for size in sizes):
        raise UserError(f"expected {name} with one whole number per level, got {sizes!r}")
    return tuple(sizes)


def _even(num_experts: int) -> tuple[int, int]:
    groups = max(g for g in range(1, math.isqrt(num_experts) + 1) if num_experts % g == 0)
    return groups, num_experts // groups


def _default_k(branching: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(min(2, b) if level == 0 else 1 for level, b in enumerate(branching))


def _check_tree(branching: tuple[int, ...], k: tuple[int, ...], *, num_experts: int) -> None:
    if not branching or min(branching) < 1 or math.prod(branching) != num_experts:
        raise UserError(f"expected a branching of sizes with the product num_experts={num_experts}, got {branching}")
    if len(k) != len(branching) or not all(1 <= chosen <= b for chosen, b in zip(k, branching, strict=True)):
        raise UserError(f"expected k with 1 to b choices for each level of branching={branching}, got {k}")
