"""Soft mixture: experts work on slots, each a mean of tokens."""

from typing import ClassVar, Unpack

import torch
from torch import Tensor, nn

from mixtura.errors import UserError
from mixtura.routers.base import GateOptions, Router, widen
from mixtura.routing import Routing, SlotRouting


class Soft(Router):
    """Each expert works on slots, means of a sequence's tokens; each token gets a mean of its sequence's slots.

    l = scale * norm(x) . norm(phi), one column per slot; a slot's shares are the softmax of its column over the tokens
    of one sequence, a token's shares the softmax of its row over the slots. Tokens of different sequences never meet:
    with x of shape (B, L, D) each of the B has its own slots; x of shape (T, D) is one sequence. Padding has no share.
    Nothing is chosen, nothing dropped, and no loss is needed. Not causal: slots mix the future in.

    `logits_TE` is each expert's logsumexp over its slots, so that its softmax is what the expert's slots add up to.

    Source: Puigcerver et al. 2023 (from sparse to soft mixtures of experts), sections 2.1 and 2.3.

    Args:
        dim: D.
        num_experts: E; also the number of choices k.
        slots_per_expert: slots of each expert in each sequence.
        options: see `Router`; a gate of one's own gives (T, E * slots_per_expert).

    Shapes:
        weight: (E * slots_per_expert, D), phi; expert e owns `slots_per_expert` rows.
        scale: ().

    Raises:
        UserError: slots_per_expert below 1.

    Example:
        >>> routing = Soft(8, num_experts=4, slots_per_expert=2)(torch.randn(10, 8), sequences=2)
        >>> routing.dispatch_TS.shape, routing.counts_E().tolist()
        (torch.Size([10, 8]), [4, 4, 4, 4])
    """

    takes_k: ClassVar[bool] = False
    needs_mask: ClassVar[bool] = True
    needs_sequences: ClassVar[bool] = True
    is_causal: ClassVar[bool] = False

    def __init__(
        self, dim: int, num_experts: int, *, slots_per_expert: int = 1, **options: Unpack[GateOptions]
    ) -> None:
        if slots_per_expert < 1:
            raise UserError(f"expected slots_per_expert of at least 1, got {slots_per_expert}")
        self.slots_per_expert = slots_per_expert  # the base asks for it to size the matrix
        super().__init__(dim, num_experts, max(num_experts, 1), **options)
        self.scale = nn.Parameter(torch.ones(()))

    @property
    def num_logits(self) -> int:
        """Columns of the logits: one per slot."""
        return self.num_experts * self.slots_per_expert

    def reset_parameters(self) -> None:
        """Draw phi afresh and set the scale to 1."""
        super().reset_parameters()
        nn.init.ones_(self.scale)

    def forward(self, x_TD: Tensor, mask_T: Tensor | None = None, *, sequences: int = 1) -> SlotRouting:
        """Route the tokens: (T, D) -> SlotRouting with E * slots_per_expert slots for each sequence."""
        logits_TS = self.logits(nn.functional.normalize(widen(x_TD), dim=-1)) * widen(self.scale)
        if self.weight is not None:
            logits_TS = logits_TS / widen(self.weight).norm(dim=-1).clamp(min=1e-12)
        (T, S), B = logits_TS.shape, sequences
        # Nothing is chosen; a replay counts the forward and checks its tokens all the same.
        self.decide(lambda: logits_TS, num_tokens=T)
        L = T // B if B else 0
        combine_TS = logits_TS.softmax(-1)
        if mask_T is None:
            dispatch_TS = logits_TS.view(B, L, S).softmax(1).view(T, S)
        else:
            padding_T1 = ~mask_T.unsqueeze(-1)
            # The lowest number and not -inf: a sequence of padding alone must give no NaN.
            lowest_TS = logits_TS.masked_fill(padding_T1, torch.finfo(logits_TS.dtype).min)
            dispatch_TS = lowest_TS.view(B, L, S).softmax(1).view(T, S).masked_fill(padding_T1, 0)
            combine_TS = combine_TS.masked_fill(padding_T1, 0)
        return SlotRouting.from_slots(
            dispatch_TS,
            combine_TS,
            num_experts=self.num_experts,
            logits_TE=logits_TS.view(T, self.num_experts, self.slots_per_expert).logsumexp(-1),
            sequences=sequences,
        )

    def decision(self, routing: Routing) -> Tensor:
        """The slots' numbers, which are the same in every forward: int64 (B*S,)."""
        return routing.token_N
