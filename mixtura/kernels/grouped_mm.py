"""The expert MLPs by `torch.nn.functional.grouped_mm`: no package beside torch, and no host synchronisation of ours.

What torch does inside depends on the device: one kernel from compute capability 9.0 on, a loop elsewhere. It wants
strides of whole 16 bytes, so narrow widths are padded; rows behind the last expert's are its caller's to blank.
Run on CPUs in tests; it has never met a GPU.
"""

import torch
from torch import Tensor

from mixtura.errors import UserError
from mixtura.kernels import ops
from mixtura.kernels.activations import StackedMLP, find
from mixtura.kernels.choice import GPU_DTYPES
from mixtura.kernels.ops import Gradients, Wanted
from mixtura.kernels.rows import RowIndex, sum_rows

_ALIGNMENT = 16  # bytes


def _padded(tensor: Tensor, dims: int) -> Tensor:
    """Zeros behind the last `dims` dimensions, up to strides of whole 16 bytes; the tensor itself where they are."""
    step = _ALIGNMENT // tensor.itemsize
    short = [-size % step for size in tensor.shape[-dims:]]
    if not any(short):
        return tensor
    return torch.nn.functional.pad(tensor, [amount for size in reversed(short) for amount in (0, size)])


class _Groups:
    """Where each expert's rows end, and which rows belong to nobody."""

    def __init__(self, index: RowIndex) -> None:
        self.ends_E = index.counts_E.cumsum(0).to(torch.int32)
        self.counts_E = index.counts_E
        rows_N = torch.arange(index.token_N.shape[0], dtype=torch.int32, device=index.token_N.device)
        expert_N = torch.searchsorted(self.ends_E, rows_N, right=True)
        # The tail borrows the last expert; whatever it computes is blanked.
        self.expert_N = expert_N.clamp(max=index.num_experts - 1)
        self.is_tail_N1 = None if index.dropless else (expert_N == index.num_experts).unsqueeze(-1)

    def blank(self, rows: Tensor) -> Tensor:
        """Zeros in the tail."""
        return rows if self.is_tail_N1 is None else rows.masked_fill_(self.is_tail_N1, 0)

    def product(self, rows_NX: Tensor, matrix_EXY: Tensor) -> Tensor:
        """Each row times its expert's matrix: (N, Y)."""
        Y = matrix_EXY.shape[2]
        # Padded along the matrix's own memory order, so that its transposed view stays one.
        if matrix_EXY.stride(2) == 1:
            matrix_EXY = _padded(matrix_EXY, 2)
        else:
            matrix_EXY = _padded(matrix_EXY.transpose(1, 2), 2).transpose(1, 2)
        out = torch.nn.functional.grouped_mm(_padded(rows_NX, 1), matrix_EXY, offs=self.ends_E)
        return out if out.shape[1] == Y else out[:, :Y].contiguous()

    def outer(self, left_NX: Tensor, right_NY: Tensor) -> Tensor:
        """Each expert's sum of outer products of its rows: (E, X, Y), zeros for an expert without rows."""
        X, Y = left_NX.shape[1], right_NY.shape[1]
        out = torch.nn.functional.grouped_mm(_padded(left_NX, 1).T, _padded(right_NY, 1), offs=self.ends_E)
        # Some versions leave an empty group's result as they found it.
        out = out.masked_fill_((self.counts_E == 0).view(-1, 1, 1), 0)
        return out if out.shape[1:] == (X, Y) else out[:, :X, :Y].contiguous()

    def sums(self, rows_NX: Tensor) -> Tensor:
        """Each expert's sum of its rows: (E, X)."""
        # As a product with ones: adding rows by index would need atomics on a GPU.
        return self.outer(rows_NX.new_ones(rows_NX.shape[0], 1), rows_NX).squeeze(1)


def _forward(
    x_TD: Tensor,
    weight_N: Tensor,
    index: RowIndex,
    *,
    experts: StackedMLP,
    keep_NF: Tensor | None,
    keep_z: bool,
) -> tuple[Tensor, Tensor]:
    up, down, up_bias, down_bias, activation = experts
    groups = _Groups(index)
    z = groups.product(x_TD.index_select(0, index.token_N), up.transpose(1, 2))
    if up_bias is not None:
        z += up_bias[groups.expert_N]
    weight_N1 = weight_N.to(x_TD.dtype).unsqueeze(-1)
    a_NF = find(activation).forward(z).mul_(weight_N1)
    if keep_NF is not None:
        a_NF *= keep_NF
    y_ND = groups.product(a_NF, down.transpose(1, 2))
    if down_bias is not None:
        y_ND += down_bias[groups.expert_N] * weight_N1
    return groups.blank(y_ND), z if keep_z else z.new_empty(0, z.shape[1])


def _backward(
    dy_ND: Tensor,
    x_TD: Tensor,
    weight_N: Tensor,
    *,
    index: RowIndex,
    experts: StackedMLP,
    keep_NF: Tensor | None,
    z: Tensor,
    wanted: Wanted,
) -> Gradients:
    up, down, _, down_bias, activation = experts
    groups = _Groups(index)
    weight_N1 = weight_N.to(x_TD.dtype).unsqueeze(-1)
    da_NF = groups.product(dy_ND, down)
    if keep_NF is not None:
        da_NF *= keep_NF
    a_NF, dz = find(activation).backward(da_NF, z)
    dz *= weight_N1
    dweight_N = None
    if wanted.weight:
        dweight_N = torch.linalg.vecdot(da_NF, a_NF)
        if down_bias is not None:
            dweight_N += torch.linalg.vecdot(dy_ND, down_bias[groups.expert_N])
        dweight_N = groups.blank(dweight_N.unsqueeze(-1)).squeeze(-1).to(weight_N.dtype)
    a_NF *= weight_N1 if keep_NF is None else weight_N1 * keep_NF
    return Gradients(
        sum_rows(groups.blank(groups.product(dz, up)), index) if wanted.x else None,
        dweight_N,
        groups.outer(dz, x_TD.index_select(0, index.token_N)) if wanted.up else None,
        groups.outer(dy_ND, a_NF) if wanted.down else None,
        groups.sums(dz) if wanted.up_bias else None,
        groups.sums(dy_ND * weight_N1) if wanted.down_bias else None,
    )


ops.register("grouped_mm", forward=_forward, backward=_backward)


def grouped_mlp(
    x_TD: Tensor, weight_N: Tensor, index: RowIndex, *, experts: StackedMLP, keep_NF: Tensor | None = None
) -> Tensor:
    """`reference.grouped_mlp` by torch's grouped products; same arguments, same result up to the order of sums.

    Raises:
        UserError: another dtype than bfloat16, float16 and float32.

    Example:
        >>> index = RowIndex(torch.tensor([0]), torch.tensor([1]), torch.tensor([[0]]), 1, True)
        >>> experts = StackedMLP(up=torch.ones(1, 1, 1), down=torch.ones(1, 1, 1), activation="relu")
        >>> grouped_mlp(torch.tensor([[3.0]]), torch.tensor([0.5]), index, experts=experts).tolist()
        [[1.5]]
    """
    if x_TD.dtype not in GPU_DTYPES:
        raise UserError(f"expected bfloat16, float16 or float32 for the grouped_mm kernel, got {x_TD.dtype}")
    return ops.call("grouped_mm", x_TD, weight_N, index=index, experts=experts, keep_NF=keep_NF)
