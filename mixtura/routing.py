"""Two values that everything else passes around: `Routing` (who goes to whom) and `Rows` (the same, grouped by expert).

One legend of letters, in every file: B batch, L length, T tokens (B*L), D model width, F hidden width, E experts,
K choices per token, N assignments, C capacity of one expert. Local names carry their shape as a suffix.
"""

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from mixtura.errors import UserError
from mixtura.kernels.rows import RowIndex, combine_rows, gather_rows


@dataclass(frozen=True, kw_only=True)
class Routing:
    """Who goes to whom, and with what weight: a list of N assignments, as any sparse router can state it.

    Its length depends on shapes alone, never on values, so that nothing waits for a device: an assignment that a router
    gives up stays in the list with expert -1.

    Attributes:
        token_N: int64 (N,), the token of each assignment.
        expert_N: int64 (N,), its expert; E and above: a null expert, which computes nothing; -1: no expert at all.
        weight_N: float32 (N,), what the expert's output is multiplied with; carries the router's gradient.
        logits_TE: float32 (T, E), raw scores, for the losses; with null experts (T, E + J), these last.
        probs_TE: float32, normalised scores, shaped like `logits_TE`.
        choices: K where each token has exactly K assignments in token order, best first (N = T*K); else None.
        partial: whether `expert_N` may hold null experts or -1.
        by_rank: where experts are full, all first choices are served before any second choice (GShard).
        null_experts: J.
        bypass_TD: float32 (T, D), added to the experts' output: what null experts give, or a residual; None: nothing.
        load_TE: float32 (T, E), the probability that fresh noise sends the token there (noisy routers), or None.
        mask_T: bool (T,), False for padding: such tokens reach no expert and count in no loss; None: all are real.
        sequences: B, where the tokens are B sequences of equal length, one after another; for the losses' scopes.

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
    partial: bool = False
    by_rank: bool = False
    null_experts: int = 0
    bypass_TD: Tensor | None = None
    load_TE: Tensor | None = None
    mask_T: Tensor | None = None
    sequences: int = 1

    @classmethod
    def from_choices(
        cls,
        expert_TK: Tensor,
        weight_TK: Tensor,
        *,
        logits_TE: Tensor,
        probs_TE: Tensor,
        partial: bool = False,
        load_TE: Tensor | None = None,
    ) -> "Routing":
        """Build the list where each token chose K experts, best first; with `partial`, -1 among them is none."""
        T, K = expert_TK.shape
        return cls(
            token_N=torch.arange(T, device=expert_TK.device).unsqueeze(1).expand(T, K).reshape(-1),
            expert_N=expert_TK.reshape(-1),
            weight_N=weight_TK.reshape(-1),
            logits_TE=logits_TE,
            probs_TE=probs_TE,
            choices=K,
            partial=partial,
            load_TE=load_TE,
        )

    @property
    def num_tokens(self) -> int:
        """T."""
        return self.probs_TE.shape[0]

    @property
    def num_experts(self) -> int:
        """E, without the null experts."""
        return self.probs_TE.shape[1] - self.null_experts

    @property
    def reaches_all(self) -> bool:
        """Whether every assignment reaches an expert, known without looking at values."""
        return self.mask_T is None and not self.partial

    def routes_N(self) -> Tensor:
        """`expert_N` with E + J in place of -1 and of whatever padding asked for: int64 (N,)."""
        route_N, none = self.expert_N, self.probs_TE.shape[1]
        if self.mask_T is not None:
            route_N = route_N.where(self.mask_T.index_select(0, self.token_N), -1)
        return route_N if self.reaches_all else route_N.where(route_N >= 0, none)

    def route_counts(self) -> Tensor:
        """Assignments of each expert and each null expert, padding left out: int64 (E + J,)."""
        route_N, routes = self.routes_N(), self.probs_TE.shape[1]
        return route_N.new_zeros(routes + 1).scatter_add_(0, route_N, torch.ones_like(route_N))[:routes]

    def counts_E(self) -> Tensor:
        """Assignments of each expert, padding left out: int64 (E,)."""
        return self.route_counts()[: self.num_experts]

    def first_choice_T(self) -> Tensor:
        """Each token's best expert: int64 (T,); of routers without a fixed number of choices, the likeliest.

        E and above: a null expert; -1: none, where the router gave the token's first choice up.
        """
        if self.choices is None:
            return self.probs_TE.argmax(-1)
        return self.expert_N.view(-1, self.choices)[:, 0]

    def part(self, start: int, end: int) -> "Routing":
        """The routing of the tokens from `start` up to `end`, by themselves.

        Raises:
            UserError: a router whose tokens have no fixed number of choices.
        """
        K, T = self.choices, self.num_tokens
        if K is None:
            raise UserError("expected a router that gives each token K choices, got one that does not")
        end = min(end, T)
        names = ("logits_TE", "probs_TE", "bypass_TD", "load_TE", "mask_T")
        values: dict[str, Any] = {name: v[start:end] for name in names if (v := getattr(self, name)) is not None}
        values |= {name: getattr(self, name)[start * K : end * K] for name in ("expert_N", "weight_N")}
        return replace(self, token_N=self.token_N[: (end - start) * K], **values)

    def detach(self) -> "Routing":
        """The same routing without its graph: what a log may keep."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        detached: dict[str, Any] = {name: v.detach() for name, v in values.items() if isinstance(v, Tensor)}
        return replace(self, **detached)


@dataclass(frozen=True, kw_only=True)
class SlotRouting(Routing):
    """Soft routing by slots (Soft MoE): each slot is a mean of its sequence's tokens, each token a mean of its slots.

    Assignments are slots: each of the B sequences of L tokens has S slots of its own. `token_N` numbers all B*S of
    them, `expert_N` names their experts, `weight_N` is 1.

    Attributes:
        dispatch_TS: float32 (T, S), each token's share of each slot; sums to 1 over a sequence's tokens.
        combine_TS: float32 (T, S), each slot's share of each token; sums to 1 over the slots.

    Example:
        >>> half = torch.full((2, 2), 0.5)
        >>> SlotRouting.from_slots(half, half, num_experts=1).expert_N.tolist()
        [0, 0]
    """

    dispatch_TS: Tensor
    combine_TS: Tensor

    @property
    def slots_shape(self) -> tuple[int, int, int]:
        """(B, L, S)."""
        T, S = self.combine_TS.shape
        B = self.token_N.shape[0] // S
        return B, T // B if B else 0, S

    def routes_N(self) -> Tensor:
        """Each slot's expert; padding has no share in a slot, and no slot is padding."""
        return self.expert_N

    @classmethod
    def from_slots(
        cls,
        dispatch_TS: Tensor,
        combine_TS: Tensor,
        *,
        num_experts: int,
        logits_TE: Tensor | None = None,
        sequences: int = 1,
    ) -> "SlotRouting":
        """Build it where expert e owns S/E slots in a row; `probs_TE` is what each expert's slots add up to.

        `sequences` is B, the number of sequences that share no slots.
        """
        (T, S), E = combine_TS.shape, num_experts
        slots = torch.arange(sequences * S, device=combine_TS.device)
        probs_TE = combine_TS.view(T, E, S // E).sum(-1)
        return cls(
            token_N=slots,
            expert_N=slots % S // (S // E),
            weight_N=combine_TS.new_ones(sequences * S),
            logits_TE=probs_TE.clamp(min=torch.finfo(probs_TE.dtype).tiny).log() if logits_TE is None else logits_TE,
            probs_TE=probs_TE,
            dispatch_TS=dispatch_TS,
            combine_TS=combine_TS,
            sequences=sequences,
        )


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The kept assignments grouped by expert: the input of every kind of experts.

    Experts give one output row per assignment, *already multiplied by its weight*; `combine` then only adds. A fused
    kernel weights the hidden rows instead of the outputs, so that it need not keep the outputs. Behind the rows of the
    last expert lies a tail of assignments that reach no expert: their output rows are zeros.

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


@dataclass(frozen=True, kw_only=True)
class SlotRows(Rows):
    """Rows that are slots, each a mean of tokens: `x_TD` holds the slots, and `combine` mixes them back for each token.

    Attributes:
        combine_BLS: float32 (B, L, S), each slot's share of each token of its sequence.

    Example:
        >>> index = RowIndex(torch.tensor([0, 1]), torch.tensor([2]), torch.tensor([[0], [1]]), 2, True)
        >>> share = torch.tensor([[[0.25, 0.75]]])
        >>> rows = SlotRows(x_TD=torch.zeros(2, 1), weight_N=torch.ones(2), index=index, combine_BLS=share)
        >>> rows.combine(torch.tensor([[4.0], [8.0]])).tolist()
        [[7.0]]
    """

    combine_BLS: Tensor

    def combine(self, y_ND: Tensor) -> Tensor:
        """Mix the slots' outputs for each token: (B*S, D) -> (T, D)."""
        (B, L, S), D = self.combine_BLS.shape, y_ND.shape[1]
        slots = combine_rows(y_ND, self.index)  # back from the experts' order to the slots' own
        return (self.combine_BLS.to(slots.dtype) @ slots.view(B, S, D)).reshape(B * L, D)
