"""Two values that everything else passes around: `Routing` (who goes to whom) and `Rows` (the same, grouped by expert).

One legend of letters, in every file: B batch, L length, T tokens (B*L), D model width, F hidden width, E experts,
K choices per token, N assignments, C capacity of one expert. Local names carry their shape as a suffix.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from mixtura.kernels.rows import RowIndex, combine_rows, gather_rows


@dataclass(frozen=True, kw_only=True)
class Routing:
    """Who goes to whom, and with what weight: a list of N assignments, as any sparse router can state it.

    Attributes:
        token_N: int64 (N,), the token of each assignment.
        expert_N: int64 (N,), its expert.
        weight_N: float32 (N,), what the expert's output is multiplied with; carries the router's gradient.
        logits_TE: float32 (T, E), raw scores, for the losses.
        probs_TE: float32 (T, E), normalised scores, for the losses.
        choices: K where each token has exactly K assignments in token order, best first (N = T*K); else None.
        load_TE: float32 (T, E), the probability that fresh noise sends the token there (noisy routers), or None.
        mask_T: bool (T,), False for padding: such tokens reach no expert and count in no loss; None: all are real.

    Example:
        >>> expert = torch.tensor([[1], [0]])
        >>> routing = Routing.from_choices(expert, torch.ones(2, 1), logits_TE=torch.eye(2), probs_TE=torch.eye(2))
        >>> routing.choices, routing.expert_N.tolist(), routing.counts_E().tolist()
        (1, [1, 0], [1, 1])
    """

    token_N: Tensor
    expert_N: Tensor
    weight_N: Tensor
    logits_TE: Tensor
    probs_TE: Tensor
    choices: int | None = None
    load_TE: Tensor | None = None
    mask_T: Tensor | None = None

    @classmethod
    def from_choices(
        cls,
        expert_TK: Tensor,
        weight_TK: Tensor,
        *,
        logits_TE: Tensor,
        probs_TE: Tensor,
        load_TE: Tensor | None = None,
    ) -> "Routing":
        """Build the list where each token chose K experts, best first."""
        T, K = expert_TK.shape
        return cls(
            token_N=torch.arange(T, device=expert_TK.device).unsqueeze(1).expand(T, K).reshape(-1),
            expert_N=expert_TK.reshape(-1),
            weight_N=weight_TK.reshape(-1),
            logits_TE=logits_TE,
            probs_TE=probs_TE,
            choices=K,
            load_TE=load_TE,
        )

    @property
    def num_tokens(self) -> int:
        """T."""
        return self.probs_TE.shape[0]

    @property
    def num_experts(self) -> int:
        """E."""
        return self.probs_TE.shape[1]

    def counts_E(self) -> Tensor:
        """Assignments of each expert, padding left out: int64 (E,)."""
        expert_N = self.expert_N if self.mask_T is None else self.expert_N[self.mask_T[self.token_N]]
        return torch.bincount(expert_N, minlength=self.num_experts)

    def detach(self) -> "Routing":
        """The same routing without its graph: what a log may keep."""
        return replace(
            self,
            weight_N=self.weight_N.detach(),
            logits_TE=self.logits_TE.detach(),
            probs_TE=self.probs_TE.detach(),
            load_TE=None if self.load_TE is None else self.load_TE.detach(),
        )


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The kept assignments grouped by expert: the input of every kind of experts.

    Experts give one output row per assignment, *already multiplied by its weight*; `combine` then only adds. A fused
    kernel weights the hidden rows instead of the outputs, so that it need not keep the outputs.

    Attributes:
        x_TD: (T, D), the tokens; `gather` copies their rows, a fused kernel reads through `index` instead.
        weight_N: float32 (N,), the weight of each row.
        index: where rows come from and where tokens find them.

    Example:
        >>> index = RowIndex(torch.tensor([0, 0]), torch.tensor([1, 1]), torch.tensor([[0, 1]]), 1, True)
        >>> rows = Rows(x_TD=torch.tensor([[4.0]]), weight_N=torch.tensor([0.25, 0.75]), index=index)
        >>> rows.combine(rows.scale(rows.gather())).tolist()
        [[4.0]]
    """

    x_TD: Tensor
    weight_N: Tensor
    index: RowIndex

    @property
    def counts_E(self) -> Tensor:
        """Rows of each expert: int64 (E,)."""
        return self.index.counts_E

    def gather(self) -> Tensor:
        """The tokens' rows, grouped by expert: (N, D)."""
        return gather_rows(self.x_TD, self.index)

    def scale(self, y_ND: Tensor) -> Tensor:
        """Multiply each row by its weight: (N, D), in the dtype of `y_ND`."""
        return y_ND * self.weight_N.to(y_ND.dtype).unsqueeze(-1)

    def combine(self, y_ND: Tensor) -> Tensor:
        """Add each token's rows: (T, D); a token without a row gets zeros."""
        return combine_rows(y_ND, self.index)


Tap = Callable[[nn.Module, Routing, Rows], None]
_taps: ContextVar[tuple[Tap, ...]] = ContextVar("mixtura_taps", default=())


@contextmanager
def tap(listener: Tap) -> Iterator[None]:
    """Inside the block every MoE layer calls `listener(layer, routing, rows)`, once per forward.

    A forward that activation recomputation repeats on the way back is not heard again.

    Example:
        >>> import mixtura as mx
        >>> layer = mx.MoEConfig(dim=4, hidden=8, num_experts=2, k=1, router="switch").build()
        >>> seen = []
        >>> with tap(lambda layer, routing, rows: seen.append(routing.num_tokens)):
        ...     _ = layer(torch.zeros(3, 4))
        >>> seen
        [3]
    """
    token = _taps.set((*_taps.get(), listener))
    try:
        yield
    finally:
        _taps.reset(token)


def announce(layer: nn.Module, routing: Routing, rows: Rows) -> None:
    """Tell every tap what a layer routed.

    Example:
        >>> announce(nn.Identity(), None, None)  # no tap is open: nothing happens
    """
    for listener in _taps.get():
        listener(layer, routing, rows)


def is_recomputing() -> bool:
    """Whether this forward runs inside a backward pass, as activation recomputation does.

    Example:
        >>> is_recomputing()
        False
    """
    return bool(torch._C._current_graph_task_id() != -1)
