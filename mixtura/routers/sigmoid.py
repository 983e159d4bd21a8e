"""Sigmoid scores with a bias that balances the load without a loss (DeepSeek-V3)."""

from collections.abc import Callable
from typing import Self, Unpack

import torch
from torch import Tensor, nn

from mixtura.errors import UserError
from mixtura.ranks import ProcessGroup, sum_over_ranks
from mixtura.routers.base import GateOptions, Router, warn_of_constant_weight
from mixtura.routing import Routing


class SigmoidBias(Router):
    """Choose by s + b, weight by s: s = sigmoid(l), and b moves against each expert's load, once per optimizer step.

    In training the layer's counts add up in `pending_counts`; `update_bias`, called once after each optimizer step,
    does b_e += gamma * sign(mean(c) - c_e) and clears them. Counting happens in the forward pass only, never again
    under activation recomputation. With `groups` > 1 only the experts of the best `group_k` groups can be chosen; a
    group's score is the sum of its two best s + b.

    Source: Wang et al. 2024 (loss-free balancing), algorithm 1; DeepSeek-AI 2024 (DeepSeek-V3), section 2.1.2.

    Args:
        dim: D.
        num_experts: E.
        k: K.
        renormalize: divide the weights by their sum + 1e-20.
        scale: multiply the weights (DeepSeek-V3: 2.5).
        groups: number of equal groups of experts.
        group_k: groups that a token may use.
        gamma: speed of the bias.
        center: subtract the mean of the change, so that the biases keep their mean.
        options: see `Router`.

    Raises:
        UserError: groups that do not divide the experts, or too few experts in the allowed groups for k.

    Example:
        >>> router = SigmoidBias(8, num_experts=4, k=2)
        >>> router.observe(router(torch.randn(5, 8)))
        >>> router.pending_counts.sum().item()
        10
        >>> router.update_bias(); router.pending_counts.sum().item()
        0
    """

    bias: Tensor

    def __init__(
        self,
        dim: int,
        num_experts: int,
        k: int = 2,
        *,
        renormalize: bool = True,
        scale: float = 1.0,
        groups: int = 1,
        group_k: int | None = None,
        gamma: float = 1e-3,
        center: bool = False,
        **options: Unpack[GateOptions],
    ) -> None:
        super().__init__(dim, num_experts, k, **options)
        group_k = groups if group_k is None else group_k
        if groups < 1 or num_experts % groups:
            raise UserError(f"expected groups that divide num_experts={num_experts}, got groups={groups}")
        if not 1 <= group_k <= groups or group_k * (num_experts // groups) < k:
            raise UserError(
                f"expected 1 <= group_k <= groups={groups} with at least k={k} experts in the groups a token may use, "
                f"got group_k={group_k} groups of {num_experts // groups} experts"
            )
        if k == 1 and num_experts > 1 and renormalize:
            warn_of_constant_weight()
        self.renormalize, self.scale, self.gamma, self.center = renormalize, scale, gamma, center
        self.groups, self.group_k = groups, group_k
        self.register_buffer("bias", torch.zeros(num_experts))
        # No buffer: DistributedDataParallel would overwrite every rank's counts with those of the first before each
        # forward. They belong to the step in progress, and so in no checkpoint.
        self.pending_counts = torch.zeros(num_experts, dtype=torch.int64)

    def reset_parameters(self) -> None:
        """Draw the weights afresh and set the bias and the counts to zero."""
        super().reset_parameters()
        self.bias.zero_()
        self.pending_counts.zero_()

    def _apply(self, fn: Callable[..., Tensor], recurse: bool = True) -> Self:  # noqa: FBT001, FBT002  # torch's own
        # model.bfloat16() must not reach the bias: next to 0.5, bf16 rounds a step of 1e-3 away, and it would stall.
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.bias = self.bias.float()
        self.pending_counts = fn(self.pending_counts)
        return self

    def forward(self, x_TD: Tensor) -> Routing:
        """Route the tokens: (T, D) -> Routing with K choices each."""
        logits_TE = self.logits(x_TD)
        score_TE = logits_TE.sigmoid()
        choice_TE = score_TE.detach() + self.bias
        if self.group_k < self.groups:
            choice_TE = _mask_groups(choice_TE, groups=self.groups, group_k=self.group_k)
        expert_TK = self.top_k(choice_TE)
        weight_TK = score_TE.gather(-1, expert_TK)
        if self.renormalize:
            weight_TK = weight_TK / (weight_TK.sum(-1, keepdim=True) + 1e-20)
        probs_TE = score_TE / (score_TE.sum(-1, keepdim=True) + 1e-20)
        return Routing.from_choices(expert_TK, weight_TK * self.scale, logits_TE=logits_TE, probs_TE=probs_TE)

    @torch.no_grad()
    def observe(self, routing: Routing) -> None:
        """Add a forward pass's assignments to the pending counts."""
        counts_E = routing.counts_E()
        if self.pending_counts.device != counts_E.device:  # some wrappers move registered tensors alone
            self.pending_counts = self.pending_counts.to(counts_E.device)
        self.pending_counts.add_(counts_E)

    @torch.no_grad()
    def update_bias(self, counts_E: Tensor | None = None) -> None:
        """Move the bias against the load counted since the last call; without any count nothing moves.

        Args:
            counts_E: the load, (E,), where it is more than the `pending_counts` of this rank.
        """
        counts_E = (self.pending_counts if counts_E is None else counts_E).to(self.bias)
        change_E = self.gamma * torch.sign(counts_E.mean() - counts_E)
        self.bias += change_E - change_E.mean() if self.center else change_E
        self.pending_counts.zero_()


def _mask_groups(choice_TE: Tensor, *, groups: int, group_k: int) -> Tensor:
    """-inf outside the `group_k` groups with the largest sum of their two best scores: (T, E)."""
    T, E = choice_TE.shape
    choice_TGe = choice_TE.view(T, groups, E // groups)
    score_TG = choice_TGe.topk(min(2, E // groups), dim=-1).values.sum(-1)
    is_out_TG = torch.ones_like(score_TG, dtype=torch.bool).scatter_(-1, score_TG.topk(group_k, dim=-1).indices, 0)
    return choice_TGe.masked_fill(is_out_TG.unsqueeze(-1), -torch.inf).view(T, E)


def update_biases(model: nn.Module, *, group: ProcessGroup | None = None) -> None:
    """Call `update_bias` on every `SigmoidBias` router of a model: once after each optimizer step.

    In a distributed run the counts are summed over all ranks, of all routers at once, so that the biases stay equal.

    Args:
        model: with the same routers on every rank.
        group: the ranks to sum over: those that see different data; None: all of them.

    Example:
        >>> update_biases(nn.Sequential(SigmoidBias(8, num_experts=4)))
    """
    routers = [module for module in model.modules() if isinstance(module, SigmoidBias) and module.frozen is None]
    if not routers:
        return
    device = routers[0].bias.device
    counts = sum_over_ranks(torch.cat([router.pending_counts.to(device) for router in routers]), group=group)
    for router, counts_E in zip(routers, counts.split([router.num_experts for router in routers]), strict=True):
        router.update_bias(counts_E)
