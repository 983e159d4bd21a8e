"""Rows by index: which token each expert row comes from, and where a token finds its rows again.

Only indices are sorted; token rows are read through them. Both directions are gathers: with K choices per token the
backward of a gather is a gather-and-sum, so nothing here needs atomics and repeated runs are equal to the last bit.

`Function`, the base of every autograd function, stands here too, since all of them know rows.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor


class RowIndex(NamedTuple):
    """The kept assignments, grouped by expert, as plain index tensors.

    Attributes:
        token_N: int64 (N,), the source token of each row. Rows behind the counts' sum are a tail that no expert works
            on: kernels return zeros there, and no gradient flows through them.
        counts_E: int64 (E,), rows of each expert; their sum is at most N.
        slot_TK: int64 (T, K), the row of each token's k-th choice, -1 where it was dropped;
            None where tokens have different numbers of choices.
        num_tokens: T.
        dropless: no entry of `slot_TK` is -1.

    Example:
        >>> index = RowIndex(torch.tensor([1, 0]), torch.tensor([1, 1]), torch.tensor([[1], [0]]), 2, True)
        >>> gather_rows(torch.tensor([[10.0], [20.0]]), index).tolist()
        [[20.0], [10.0]]
    """

    token_N: Tensor
    counts_E: Tensor
    slot_TK: Tensor | None
    num_tokens: int
    dropless: bool

    @property
    def num_experts(self) -> int:
        """E, the number of experts."""
        return self.counts_E.shape[0]

    def parts(self) -> list[int]:
        """Sizes that cut N rows into each expert's own and the tail: E + 1 numbers. Waits for a device."""
        counts: list[int] = self.counts_E.tolist()
        return [*counts, self.token_N.shape[0] - sum(counts)]


def sum_rows(y_ND: Tensor, index: RowIndex, slot_TK: Tensor | None = None) -> Tensor:
    """Add each token's rows: (N, D) -> (T, D); tokens without a row get zeros.

    `slot_TK` replaces the index's own slots where the rows lie in another layout (padded to a common count).

    Example:
        >>> index = RowIndex(torch.tensor([0, 0]), torch.tensor([1, 1]), torch.tensor([[0, 1]]), 1, True)
        >>> sum_rows(torch.tensor([[1.0], [2.0]]), index).tolist()
        [[3.0]]
    """
    if slot_TK is None:
        # Late: the longest chain of imports ends here.
        from mixtura.kernels.choice import is_fused

        if is_fused(y_ND):
            from mixtura.kernels.triton import combine

            return combine.sum_rows(y_ND, index)
    slot_TK = index.slot_TK if slot_TK is None else slot_TK
    if slot_TK is not None and y_ND.shape[0]:
        from mixtura.kernels import native

        if y_ND.dtype in native.DTYPE_CODES and native.takes_index(y_ND):
            return native.sum_slots(y_ND, slot_TK)
    if slot_TK is None:
        return y_ND.new_zeros(index.num_tokens, y_ND.shape[1]).index_add_(0, index.token_N, y_ND)
    (T, K), D = slot_TK.shape, y_ND.shape[1]
    if not index.dropless:
        if y_ND.shape[0] == 0:
            return y_ND.new_zeros(T, D)
        y_TKD = y_ND.index_select(0, slot_TK.clamp(min=0).flatten()).view(T, K, D)
        # masked_fill and not a product with the mask: a NaN in the row that stands in must not leak.
        return y_TKD.masked_fill_((slot_TK < 0).unsqueeze(-1), 0).sum(1)
    if K == 1:
        return y_ND.index_select(0, slot_TK.view(-1))
    return y_ND.index_select(0, slot_TK.flatten()).view(T, K, D).sum(1)


def is_traced(x: Tensor) -> bool:
    """Whether a call on this tensor is traced or transformed, and no plain eager one: it may then look at no value.

    Example:
        >>> is_traced(torch.zeros(1, 1)), is_traced(torch.zeros(1, 1, device="meta"))
        (False, True)
    """
    return (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or x.is_meta
        or isinstance(x, FakeTensor)
    )


class Function(torch.autograd.Function):
    """A base for functions with a `setup_context`, which torch.func asks for; `call` replaces `apply`.

    Torch binds the arguments of such a function to its signature in Python, which takes longer than a small kernel. So
    eager calls go to a twin without `setup_context`.

    Example:
        >>> class Double(Function):
        ...     @staticmethod
        ...     def forward(x):
        ...         return 2 * x
        ...
        ...     @staticmethod
        ...     def setup_context(ctx, inputs, output):
        ...         pass
        ...
        ...     @staticmethod
        ...     def backward(ctx, grad):
        ...         return 2 * grad
        >>> x = torch.tensor(3.0, requires_grad=True)
        >>> Double.call(x).backward(), x.grad
        (None, tensor(2.))
        >>> torch.func.grad(Double.call)(x.detach())
        tensor(2.)
    """

    generate_vmap_rule = True
    _eager: type[torch.autograd.Function]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()

        def forward(ctx: Any, *inputs: Any) -> Any:
            output = cls.forward(*inputs)
            cls.setup_context(ctx, inputs, output)
            return output

        # A function that inherited from this class would inherit its setup_context.
        members = {"forward": staticmethod(forward), "backward": staticmethod(cls.backward)}
        cls._eager = type(cls.__name__, (torch.autograd.Function,), members)

    @classmethod
    def call(cls, *inputs: Any) -> Any:
        """Apply the function; its first argument is a tensor."""
        if torch.compiler.is_compiling() and not torch.is_grad_enabled():
            return cls.forward(*inputs)  # under no_grad torch.compile cannot trace a function with a setup_context
        return (cls if is_traced(inputs[0]) else cls._eager).apply(*inputs)


class _Gather(Function):
    @staticmethod
    def forward(*inputs: Any) -> Tensor:
        x_TD, token_N, *_ = inputs
        rows_ND: Tensor = x_TD.index_select(0, token_N)
        return rows_ND

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], _: Tensor) -> None:
        # The index comes field by field, since whatever traces looks for tensors in the arguments, and not inside them.
        *tensors, ctx.num_tokens, ctx.dropless = inputs[1:]
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, grad_ND: Tensor) -> tuple[Tensor | None, ...]:
        token_N, counts_E, slot_TK = ctx.saved_tensors
        return sum_rows(grad_ND, RowIndex(token_N, counts_E, slot_TK, ctx.num_tokens, ctx.dropless)), *(None,) * 5


class _Combine(Function):
    @staticmethod
    def forward(*inputs: Any) -> Tensor:
        y_ND, *index = inputs
        return sum_rows(y_ND, RowIndex(*index))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], _: Tensor) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, grad_TD: Tensor) -> tuple[Tensor | None, ...]:
        (token_N,) = ctx.saved_tensors
        return grad_TD.index_select(0, token_N), *(None,) * 5


def gather_rows(x_TD: Tensor, index: RowIndex) -> Tensor:
    """Copy the token of each row: (T, D) -> (N, D), differentiable.

    Example:
        >>> index = RowIndex(torch.tensor([1, 1]), torch.tensor([2]), None, 2, True)
        >>> gather_rows(torch.tensor([[1.0], [2.0]]), index).tolist()
        [[2.0], [2.0]]
    """
    result: Tensor = _Gather.call(x_TD, *index)
    return result


def combine_rows(y_ND: Tensor, index: RowIndex) -> Tensor:
    """Add each token's rows: (N, D) -> (T, D), differentiable; keeps nothing of size N x D for the backward pass.

    Example:
        >>> index = RowIndex(torch.tensor([0]), torch.tensor([1]), torch.tensor([[0], [-1]]), 2, False)
        >>> combine_rows(torch.tensor([[3.0]]), index).tolist()
        [[3.0], [0.0]]
    """
    result: Tensor = _Combine.call(y_ND, *index)
    return result
