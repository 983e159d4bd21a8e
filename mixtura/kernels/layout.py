"""Where each expert's rows lie, so that few batched products do the work of one product per expert.

A product call costs about as much as several hundred small rows, so experts with similar counts are put into one group,
padded to its largest count, and computed by one batched product. `partition` weighs padding against calls for the
counts at hand; in the extremes all experts share one group, or each is its own and nothing is padded.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from mixtura.kernels.rows import RowIndex, sum_rows

# Multiply-adds that take as long as one product call's overhead on two threads; docs/log.md, 2026-11-22.
CALL_OVERHEAD_MACS = 2_500_000
# Rows that cost as much as copying one expert's matrix into the groups' order and its gradient back.
COPY_ROWS = 16
# Capacities of groups are rounded up to this, so that libraries that build a kernel for each shape can reuse it.
ROW_MULTIPLE = 16


class Partition(NamedTuple):
    """Experts in the order in which their rows lie, cut into groups of `sizes` with `capacities` rows per expert.

    Example:
        >>> Partition(order=[1, 0], sizes=[2], capacities=[16]).num_rows
        32
    """

    order: list[int]
    sizes: list[int]
    capacities: list[int]

    @property
    def num_rows(self) -> int:
        """R, rows in all, padding included."""
        return sum(size * capacity for size, capacity in zip(self.sizes, self.capacities, strict=True))

    @property
    def is_natural(self) -> bool:
        """Whether the experts keep their own order, so that no matrix is copied."""
        return self.order == list(range(len(self.order)))


def partition(counts: Sequence[int], *, macs_per_row: int) -> Partition:
    """Group the experts so that padding, product calls and copies of matrices cost least.

    Candidates are equal cuts of the experts in order of their counts, and a cut into sizes 1, 1, 2, 4, ... for one
    expert that towers above the others. One group, and all groups of one, keep the experts' own order.

    Args:
        counts: rows of each expert.
        macs_per_row: multiply-adds of one row in one product.

    Example:
        >>> partition([5, 900, 6, 880], macs_per_row=10_000)
        Partition(order=[1, 3, 2, 0], sizes=[2, 2], capacities=[912, 16])
        >>> partition([5, 4], macs_per_row=10_000_000)
        Partition(order=[0, 1], sizes=[1, 1], capacities=[5, 4])
    """
    E = len(counts)
    natural = list(range(E))
    order = sorted(natural, key=counts.__getitem__, reverse=True)
    sizes = [[step] * (E // step) + [E % step] * (E % step > 0) for step in {-(-E // 2), -(-E // 4), -(-E // 8)}]
    doubling = [1, *(1 << i for i in range(E.bit_length() - 1))]
    sizes.append([*doubling[:-1], E - sum(doubling[:-1])] if E > 1 else [1])
    # Where costs are equal the first one is taken: the experts' own order.
    candidates = [Partition(natural, [1] * E, list(counts)), _padded(natural, [E], [max(counts)])]
    for cut in sizes:
        starts = accumulate(cut[:-1], initial=0)
        candidates.append(_padded(order, cut, [counts[order[start]] for start in starts]))

    def cost(candidate: Partition) -> int:
        copied = 0 if candidate.is_natural else E * COPY_ROWS
        return (candidate.num_rows + copied) * macs_per_row + len(candidate.sizes) * CALL_OVERHEAD_MACS

    return min(candidates, key=cost)


def _padded(order: list[int], sizes: list[int], largest: list[int]) -> Partition:
    return Partition(order, sizes, [-(-count // ROW_MULTIPLE) * ROW_MULTIPLE for count in largest])


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
        self.num_kept = sum(counts)
        self.partition = partition(counts, macs_per_row=macs_per_row)
        self.order_E = None if self.partition.is_natural else torch.tensor(self.partition.order, device=self.device)
        self.num_rows = self.partition.num_rows
        self.is_compact = self.partition.is_natural and self.num_rows == self.num_kept == index.token_N.shape[0]
        if not self.is_compact:
            self._place(counts)

    def _place(self, counts: list[int]) -> None:
        """Find the row of each assignment, the token of each row, and the padding rows."""
        order, sizes, capacities = self.partition
        capacity_e = [capacity for size, capacity in zip(sizes, capacities, strict=True) for _ in range(size)]
        start_e, start_E = list(accumulate(capacity_e, initial=0)), list(accumulate(counts, initial=0))
        shift = [0] * len(counts)
        for place, expert in enumerate(order):
            shift[expert] = start_e[place] - start_E[expert]
        # Of the kept rows only: the tail has no place in the layout.
        kept = self.num_kept
        shift_N = torch.tensor(shift, device=self.device).repeat_interleave(self.index.counts_E, output_size=kept)
        self.place_N = torch.arange(kept, device=self.device) + shift_N
        token_N = self.index.token_N[:kept]
        self.token_R = token_N.new_zeros(self.num_rows).index_copy_(0, self.place_N, token_N)
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
        return rows.new_zeros(self.num_rows, *rows.shape[1:]).index_copy_(0, self.place_N, rows[: self.num_kept])

    def compact(self, rows: Tensor) -> Tensor:
        """The inverse of `spread`: (R, *) -> (N, *), with zeros in the tail."""
        if self.is_compact:
            return rows
        N = self.index.token_N.shape[0]
        if self.num_kept == N:
            return rows.index_select(0, self.place_N)
        out = rows.new_empty(N, *rows.shape[1:])
        torch.index_select(rows, 0, self.place_N, out=out[: self.num_kept])
        out[self.num_kept :] = 0
        return out

    def product(self, rows: Tensor, weight: Tensor, *, transpose: bool = False, bias: Tensor | None = None) -> Tensor:
        """Each row times its expert's matrix, plus its bias: (R, X) -> (R, Y). Weight: (E, X, Y), or (E, Y, X)."""
        out = rows.new_empty(self.num_rows, weight.shape[1 if transpose else 2])
        weight = self._ordered(weight)
        blocks = self._by_group(weight.transpose(1, 2) if transpose else weight)
        if bias is None:
            for x, block, y in zip(self._groups(rows), blocks, self._groups(out), strict=True):
                torch.bmm(x, block, out=y)
            return out
        biases = self._by_group(self._ordered(bias).unsqueeze(1))
        for x, block, b, y in zip(self._groups(rows), blocks, biases, self._groups(out), strict=True):
            torch.baddbmm(b, x, block, out=y)
        return out

    def weight_grad(self, left: Tensor, right: Tensor) -> Tensor:
        """Each expert's sum of outer products of its rows: (R, X), (R, Y) -> (E, X, Y), zeros for an expert without."""
        out = left.new_empty(len(self.partition.order), left.shape[1], right.shape[1])
        for x, y, block in zip(self._groups(left), self._groups(right), self._by_group(out), strict=True):
            torch.bmm(x.transpose(1, 2), y, out=block)
        return out if self.order_E is None else torch.empty_like(out).index_copy_(0, self.order_E, out)

    def bias_rows(self, bias: Tensor) -> Tensor:
        """Each row's expert's bias: (E, X) -> (R, X)."""
        return bias.index_select(0, self._expert_R())

    def bias_grad(self, rows: Tensor) -> Tensor:
        """Each expert's sum of its rows: (R, X) -> (E, X)."""
        return rows.new_zeros(len(self.partition.order), rows.shape[1]).index_add_(0, self._expert_R(), rows)

    def sum_to_tokens(self, rows: Tensor) -> Tensor:
        """Add each token's rows: (R, D) -> (T, D)."""
        slot_TK = self.index.slot_TK
        if self.is_compact or slot_TK is None:
            return sum_rows(self.compact(rows), self.index)
        if slot_TK.numel() == 0 or self.place_N.numel() == 0:
            return rows.new_zeros(self.index.num_tokens, rows.shape[1])
        placed_TK = self.place_N[slot_TK.clamp(min=0)]
        return sum_rows(rows, self.index, placed_TK if self.index.dropless else placed_TK.where(slot_TK >= 0, -1))

    def _ordered(self, stacked: Tensor) -> Tensor:
        """Something stacked by expert, in the order of the groups."""
        return stacked if self.order_E is None else stacked.index_select(0, self.order_E)

    def _by_group(self, stacked: Tensor) -> tuple[Tensor, ...]:
        parts: tuple[Tensor, ...] = stacked.split(self.partition.sizes)
        return parts

    def _groups(self, rows: Tensor) -> list[Tensor]:
        """Each group's part of all rows: (R, X) -> (g, c, X), views."""
        _, sizes, capacities = self.partition
        parts = rows.split([size * capacity for size, capacity in zip(sizes, capacities, strict=True)])
        X = rows.shape[1]
        return [part.view(size, capacity, X) for part, size, capacity in zip(parts, sizes, capacities, strict=True)]

    def _expert_R(self) -> Tensor:
        order, sizes, capacities = self.partition
        capacity_e = [capacity for size, capacity in zip(sizes, capacities, strict=True) for _ in range(size)]
        return torch.tensor(order, device=self.device).repeat_interleave(torch.tensor(capacity_e, device=self.device))
