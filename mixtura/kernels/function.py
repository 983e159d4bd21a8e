"""Autograd functions that can be traced and transformed, at no cost to plain eager calls."""

from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor


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
        return (cls if is_traced(inputs[0]) else cls._eager).apply(*inputs)
