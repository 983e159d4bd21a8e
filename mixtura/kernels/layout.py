"""Where each expert's rows lie, so that few batched products do the work of one product per expert.

A product call costs about as much as several hundred small rows, so experts with similar counts are put into one group,
padded to its largest count, and computed by one batched product. `partition` weighs padding against calls for the
counts at hand; in the extremes all experts share one group, or each is its own and nothing is padded.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from mixtura.kernels.rows import RowIndex, sum_rows

# Multiply-adds that take as long as one product call's overhead on two threads; docs/log.md, 2026-11-22.
CALL_OVERHEAD_MACS = 2_500_000
# Capacities of groups are rounded up to this, so that libraries that build a kernel for each shape can reuse it.
ROW_MULTIPLE = 16


def partition(counts: Sequence[int], *, macs_per_row: int) -> list[list[int]]:
    """Split the experts into groups that are padded to a common count, so that padding and calls cost least.

    Candidates are equal cuts of the experts in order of their counts, and a cut into sizes 1, 1, 2, 4, ... for one
    expert that towers above the others. One group, and all groups of one, keep the experts' own order.

    Args:
        counts: rows of each expert.
        macs_per_row: multiply-adds of one row in one product.

    Example:
        >>> partition([5, 900, 6, 880], macs_per_row=10_000)
        [[1, 3], [2, 0]]
        >>> partition([5, 4], macs_per_row=10_000), partition([5, 4], macs_per_row=10_000_000)
        ([[0, 1]], [[0], [1]])
    """
    E = len(counts)
    order = sorted(range(E), key=counts.__getitem__, reverse=True)
    cuts = [list(range(0, E, -(-E // groups))) for groups in (2, 4, 8) if groups < E]
    cuts.append([0, *(1 << i for i in range((E - 1).bit_length()))])
    sorted_groups = [[order[a:b] for a, b in pairwise([*cut, E])] for cut in cuts]
    # Where costs are equal the first one is taken: the experts' own order, which needs no copies.
    candidates = [[list(range(E))], [[e] for e in range(E)], *sorted_groups]

    def cost(groups: list[list[int]]) -> int:
        rows = sum(len(group) * max(counts[e] for e in group) for group in groups)
        return rows * macs_per_row + len(groups) * CALL_OVERHEAD_MACS

    return min(candidates, key=cost)


@dataclass(frozen=True, kw_only=True)
class _Group:
    """g experts with c rows each, one expert after another from row `start`."""

    experts: list[int]
    experts_g: Tensor
    start: int
    capacity: int

    def rows(self, tensor: Tensor) -> Tensor:
        """This group's part of all rows: (R, X) -> (g, c, X), a view."""
        count = len(self.experts)
        part = tensor[self.start : self.start + count * self.capacity]
        return part.view(count, self.capacity, tensor.shape[1])

    def view(self, stacked: Tensor) -> Tensor | None:
        """This group's part of something stacked by expert, (E, *) -> (g, *), where that can be a view."""
        first, count = self.experts[0], len(self.experts)
        return stacked[first : first + count] if count in (1, stacked.shape[0]) else None

    def take(self, stacked: Tensor) -> Tensor:
        """The same, copied where it cannot be a view."""
        part = self.view(stacked)
        return stacked.index_select(0, self.experts_g) if part is None else part


class Layout:
    """The rows of all groups, one group after another: (R, *), R >= N. Padding rows are zero where a sum sees them.

    Args:
        index: the kept assignments.
        macs_per_row: multiply-adds of one row in one product.

    Example:
        >>> index = RowIndex(torch.tensor([0, 1, 2]), torch.tensor([1, 2]), torch.tensor([[0], [1], [2]]), 3, True)
        >>> layout = Layout(index, macs_per_row=1)
        >>> x = torch.tensor([[1.0], [2.0], [3.0]])
        >>> layout.compact(layout.product(layout.take(x), torch.tensor([[[10.0]], [[100.0]]]))).flatten().tolist()
        [10.0, 200.0, 300.0]
    """

    def __init__(self, index: RowIndex, *, macs_per_row: int) -> None:
        self.index, self.device = index, index.token_N.device
        counts: list[int] = index.counts_E.tolist()
        groups = partition(counts, macs_per_row=macs_per_row)
        self.is_compact = groups == [[e] for e in range(len(counts))]
        capacities = [max(counts[e] for e in group) for group in groups]
        if not self.is_compact:
            capacities = [-(-capacity // ROW_MULTIPLE) * ROW_MULTIPLE for capacity in capacities]
        self.groups, self.num_rows = [], 0
        for group, capacity in zip(groups, capacities, strict=True):
            experts_g = torch.tensor(group, device=self.device)
            self.groups.append(_Group(experts=group, experts_g=experts_g, start=self.num_rows, capacity=capacity))
            self.num_rows += len(group) * capacity
        if not self.is_compact:
            self._place(counts)

    def _place(self, counts: list[int]) -> None:
        """Find the row of each assignment, the token of each row, and the padding rows."""
        start = list(accumulate(counts, initial=0))
        shift = [0] * len(counts)
        for group in self.groups:
            for place, expert in enumerate(group.experts):
                shift[expert] = group.start + place * group.capacity - start[expert]
        N = self.index.token_N.shape[0]
        shift_N = torch.tensor(shift, device=self.device).repeat_interleave(self.index.counts_E, output_size=N)
        self.place_N = torch.arange(N, device=self.device) + shift_N
        self.token_R = self.index.token_N.new_zeros(self.num_rows).index_copy_(0, self.place_N, self.index.token_N)
        is_padding_R = torch.ones(self.num_rows, dtype=torch.bool, device=self.device)
        self.padding = is_padding_R.index_fill_(0, self.place_N, 0).nonzero().view(-1)

    def take(self, x_TD: Tensor) -> Tensor:
        """Copy each row's token: (T, D) -> (R, D)."""
        if self.is_compact:
            return x_TD.index_select(0, self.index.token_N)
        return x_TD.index_select(0, self.token_R).index_fill_(0, self.padding, 0)

    def spread(self, rows: Tensor) -> Tensor:
        """Put one value or row per assignment into the layout: (N, *) -> (R, *)."""
        if self.is_compact:
            return rows
        return rows.new_zeros(self.num_rows, *rows.shape[1:]).index_copy_(0, self.place_N, rows)

    def compact(self, rows: Tensor) -> Tensor:
        """The inverse of `spread`: (R, *) -> (N, *)."""
        return rows if self.is_compact else rows.index_select(0, self.place_N)

    def product(self, rows: Tensor, weight: Tensor, *, transpose: bool = False, bias: Tensor | None = None) -> Tensor:
        """Each row times its expert's matrix, plus its bias: (R, X) -> (R, Y). Weight: (E, X, Y), or (E, Y, X)."""
        out = rows.new_empty(self.num_rows, weight.shape[1 if transpose else 2])
        for group in self.groups:
            block = group.take(weight)
            block = block.transpose(1, 2) if transpose else block
            if bias is None:
                torch.bmm(group.rows(rows), block, out=group.rows(out))
            else:
                torch.baddbmm(group.take(bias).unsqueeze(1), group.rows(rows), block, out=group.rows(out))
        return out

    def weight_grad(self, left: Tensor, right: Tensor) -> Tensor:
        """Each expert's sum of outer products of its rows: (R, X), (R, Y) -> (E, X, Y), zeros for an expert without."""
        out = left.new_empty(len(self.index.counts_E), left.shape[1], right.shape[1])
        for group in self.groups:
            a, b, block = group.rows(left).transpose(1, 2), group.rows(right), group.view(out)
            if block is None:
                out.index_copy_(0, group.experts_g, torch.bmm(a, b))
            else:
                torch.bmm(a, b, out=block)
        return out

    def bias_rows(self, bias: Tensor) -> Tensor:
        """Each row's expert's bias: (E, X) -> (R, X)."""
        return bias.index_select(0, self._expert_R())

    def bias_grad(self, rows: Tensor) -> Tensor:
        """Each expert's sum of its rows: (R, X) -> (E, X)."""
        return rows.new_zeros(len(self.index.counts_E), rows.shape[1]).index_add_(0, self._expert_R(), rows)

    def _expert_R(self) -> Tensor:
        return torch.cat([group.experts_g.repeat_interleave(group.capacity) for group in self.groups])

    def sum_to_tokens(self, rows: Tensor) -> Tensor:
        """Add each token's rows: (R, D) -> (T, D)."""
        slot_TK = self.index.slot_TK
        if self.is_compact or slot_TK is None:
            return sum_rows(self.compact(rows), self.index)
        if slot_TK.numel() == 0 or self.place_N.numel() == 0:
            return rows.new_zeros(self.index.num_tokens, rows.shape[1])
        placed_TK = self.place_N[slot_TK.clamp(min=0)]
        return sum_rows(rows, self.index, placed_TK if self.index.dropless else placed_TK.where(slot_TK >= 0, -1))
