"""Routers that learn nothing: a fixed table over token ids, and chance."""

import heapq
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mixtura.errors import UserError
from mixtura.routers.base import Router, widen
from mixtura.routing import Routing


class Hash(Router):
    """Each token goes to the experts that a fixed table names for its id: `MoE.forward` needs `context=ids`.

    Without `frequencies` the table is random: `k` different hashes of each id. With them it is balanced: ids are dealt
    out from the most frequent one to the `k` experts with the least load so far; ids that never occurred stay random.
    The weight is 1/k, and there are no parameters. `logits_TE` is 0, `probs_TE` the choice itself, so that losses can
    measure the balance. Source: Roller et al. 2021 (Hash layers), section 3.

    Args:
        dim: D.
        num_experts: E.
        k: K, the number of hashes.
        vocab_size: V, rows of the table; an id is taken modulo V. None: as many as `frequencies`, or 65,536.
        frequencies: how often each id occurs, V counts or shares.
        seed: of the random table.

    Shapes:
        table: int64 (V, K), a buffer, so that a checkpoint keeps it.

    Raises:
        UserError: frequencies that are negative, not finite, all zero, or not V; in `forward`, a context that is not
            one integer per token.

    Example:
        >>> router = Hash(8, num_experts=2, frequencies=[9, 5, 4])
        >>> router.table.tolist()
        [[0], [1], [1]]
        >>> router(torch.zeros(3, 8), context_T=torch.tensor([0, 1, 0])).expert_N.tolist()
        [0, 1, 0]
    """

    has_gate = False
    needs_context = True
    table: Tensor

    def __init__(
        self,
        dim: int,
        num_experts: int,
        k: int = 1,
        *,
        vocab_size: int | None = None,
        frequencies: Sequence[float] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(dim, num_experts, k)
        self.seed = seed
        self.frequencies = None if frequencies is None else tuple(float(f) for f in frequencies)
        self.vocab_size = _vocab_size(vocab_size, self.frequencies)
        self.register_buffer("table", torch.empty(self.vocab_size, k, dtype=torch.int64))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Fill the table again, the same one."""
        table_VK = _random_table(self.vocab_size, self.num_experts, k=self.k, seed=self.seed)
        if self.frequencies is not None:
            _deal_out(table_VK, self.frequencies, num_experts=self.num_experts)
        self.table.copy_(table_VK)

    def forward(self, x_TD: Tensor, *, context_T: Tensor | None = None) -> Routing:
        """Route the tokens by their ids: (T, D), int (T,) -> Routing with K choices each."""
        ids_T = _check_ids(context_T, num_tokens=x_TD.shape[0])
        expert_TK = self.decide(lambda: self.table[ids_T % self.vocab_size], num_tokens=x_TD.shape[0])
        logits_TE = _no_logits(x_TD, num_experts=self.num_experts)
        weight_TK = logits_TE.new_full(expert_TK.shape, 1 / self.k)
        probs_TE = logits_TE.scatter(1, expert_TK, weight_TK)
        return self.routing(x_TD, expert_TK, weight_TK, logits_TE=logits_TE, probs_TE=probs_TE)

    def extra_repr(self) -> str:
        """Sizes, for print(model)."""
        return f"{super().extra_repr()}, vocab_size={self.vocab_size}"


class Random(Router):
    """Each token goes to K different experts drawn uniformly, anew in every forward: for debugging and as a baseline.

    The weight is 1/K, `probs_TE` uniform, and there are no parameters. In `mixtura.replay` the draw is repeated.

    Args:
        dim: D.
        num_experts: E.
        k: K.

    Example:
        >>> routing = Random(8, num_experts=4, k=2)(torch.zeros(3, 8))
        >>> routing.weight_N.tolist(), [len(set(pair)) for pair in routing.expert_N.view(3, 2).tolist()]
        ([0.5, 0.5, 0.5, 0.5, 0.5, 0.5], [2, 2, 2])
    """

    has_gate = False

    def __init__(self, dim: int, num_experts: int, k: int = 2) -> None:
        super().__init__(dim, num_experts, k)

    def forward(self, x_TD: Tensor) -> Routing:
        """Route the tokens: (T, D) -> Routing with K choices each."""
        logits_TE = _no_logits(x_TD, num_experts=self.num_experts)
        # The K largest of E equal draws are a uniform choice of K different experts, in a uniform order.
        expert_TK = self.top_k(torch.rand_like(logits_TE))
        weight_TK = logits_TE.new_full(expert_TK.shape, 1 / self.k)
        return self.routing(x_TD, expert_TK, weight_TK, logits_TE=logits_TE, probs_TE=logits_TE.softmax(-1))


def _no_logits(x_TD: Tensor, *, num_experts: int) -> Tensor:
    return x_TD.new_zeros(x_TD.shape[0], num_experts, dtype=widen(x_TD[:0]).dtype)


def _vocab_size(vocab_size: int | None, frequencies: Sequence[float] | None) -> int:
    if vocab_size is not None and vocab_size < 1:
        raise UserError(f"expected vocab_size of at least 1, got {vocab_size}")
    if frequencies is None:
        return 65_536 if vocab_size is None else vocab_size
    if not all(f >= 0 and math.isfinite(f) for f in frequencies) or not any(frequencies):
        raise UserError("expected frequencies that are finite, not negative and not all 0, got others")
    if vocab_size not in (None, len(frequencies)):
        raise UserError(f"expected {vocab_size} frequencies, as vocab_size says, got {len(frequencies)}")
    return len(frequencies)


def _random_table(vocab_size: int, num_experts: int, *, k: int, seed: int) -> Tensor:
    """K different experts for each id: int64 (V, K), on the CPU, so that a seed means the same on every device."""
    generator = torch.Generator(device="cpu").manual_seed(seed)
    return torch.rand(vocab_size, num_experts, generator=generator, device="cpu").topk(k, dim=-1).indices


def _deal_out(table_VK: Tensor, frequencies: Sequence[float], *, num_experts: int) -> None:
    """From the most frequent id to the rarest, each to the K experts with the least load; in place."""
    k = table_VK.shape[1]
    loads = [(0.0, e) for e in range(num_experts)]
    rows: list[list[int]] = table_VK.tolist()
    for i in sorted(range(len(frequencies)), key=lambda i: -frequencies[i]):
        if not frequencies[i]:
            break
        chosen = [heapq.heappop(loads) for _ in range(k)]
        rows[i] = [e for _, e in chosen]
        for load, e in chosen:
            heapq.heappush(loads, (load + frequencies[i] / k, e))
    table_VK.copy_(torch.tensor(rows, device="cpu"))


def _check_ids(context_T: Tensor | None, *, num_tokens: int) -> Tensor:
    if context_T is None:
        raise UserError("expected context_T, the token ids, for a Hash router, got None")
    if context_T.shape != (num_tokens,) or context_T.is_floating_point():
        raise UserError(
            f"expected context with one integer id per token, of shape ({num_tokens},), "
            f"got {context_T.dtype} of shape {tuple(context_T.shape)}"
        )
    return context_T.long()
