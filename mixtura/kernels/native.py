"""The compiled CPU kernel: grouped products with packed operands, gathering and activation inside them.

Forward and backward each are one call into a small C++ library (`csrc/`, compiled by `build`), which reads tokens
through the index, keeps only the pre-activation z between the passes, and writes each expert's gradient once. Without
the library, or for operands it does not know, `availability` says why, and the `cpu` kernel does the work.
"""

import ctypes
import functools
import os
from itertools import count, takewhile
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mixtura.errors import UserError
from mixtura.kernels import ops
from mixtura.kernels.activations import WOVEN_PREFIX, StackedMLP
from mixtura.kernels.choice import forced
from mixtura.kernels.ops import Gradients, Wanted, first_derivative_only
from mixtura.kernels.rows import RowIndex, is_traced, sum_rows

ACTIVATION_CODES = {  # in the order of csrc/problem.h
    name: code
    for code, name in enumerate(
        ("relu", "gelu", "gelu_tanh", "silu", "swiglu", "geglu", "geglu_tanh", "clamped_swiglu")
    )
}
WOVEN_COLUMNS, UP_TRANSPOSED, DOWN_TRANSPOSED = 1, 2, 4  # the flags of csrc/problem.h
DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1}
VARIABLE = "MIXTURA_NATIVE"  # names the variant that must run, or "off"

_sizes = ("tokens", "rows", "experts", "dim", "hidden", "choices")
_modes = ("dtype", "activation", "threads", "layout")
_inputs = ("token", "count", "slot", "x", "weight", "up", "down", "up_bias", "down_bias", "keep")
_backward = ("dx_rows", "dx", "dweight", "dup", "ddown", "dup_bias", "ddown_bias")
_scratch = ("a", "dz", "parts")


class _Problem(ctypes.Structure):
    """`MixturaProblem` of csrc/problem.h, field by field."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in _sizes),
        *((name, ctypes.c_int32) for name in _modes),
        *((name, ctypes.c_void_p) for name in (*_inputs, "z", "y", "dy")),
        ("dy_by_token", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in (*_backward, *_scratch)),
    )


class Library(NamedTuple):
    """The loaded library, or why there is none.

    Attributes:
        functions: what ctypes loaded, or None.
        variants: the sets of instructions that this machine can run, best first.
        reason: why `functions` is None; empty otherwise.

    Example:
        >>> isinstance(library().variants, tuple)
        True
    """

    functions: ctypes.CDLL | None
    variants: tuple[str, ...]
    reason: str


@functools.cache
def library() -> Library:
    """Load the compiled library, once per process.

    Example:
        >>> (library().functions is None) == bool(library().reason)
        True
    """
    from mixtura.kernels import build  # late, so that `python -m mixtura.kernels.build` finds it not yet imported

    if not build.LIBRARY.exists():
        return Library(None, (), "it was not compiled; with a C++ compiler `python -m mixtura.kernels.build` does it")
    try:
        functions = ctypes.CDLL(str(build.LIBRARY))
        functions.mixtura_sources.restype = functions.mixtura_variant.restype = ctypes.c_char_p
        sources = functions.mixtura_sources().decode()
    except (OSError, AttributeError) as error:
        return Library(None, (), f"its library does not load: {error}")
    if sources != build.fingerprint():
        return Library(None, (), "its library was compiled from other sources; run `python -m mixtura.kernels.build`")
    names = map(functions.mixtura_variant, count())
    return Library(functions, tuple(name.decode() for name in takewhile(bool, names)), "")


def variant() -> str:
    """The set of instructions that runs: the best of this machine, or the one that $MIXTURA_NATIVE names.

    Raises:
        UserError: $MIXTURA_NATIVE names one that this machine cannot run.

    Example:
        >>> variant() in (*library().variants, "")
        True
    """
    loaded, wanted = library(), os.environ.get(VARIABLE, "")
    if not loaded.variants or wanted == "off":
        return ""
    if wanted and wanted not in loaded.variants:
        raise UserError(f"expected ${VARIABLE} among {[*loaded.variants, 'off']}, got {wanted!r}")
    return wanted or loaded.variants[0]


def availability() -> str:
    """Why the kernel cannot run at all in this process; empty where it can.

    Example:
        >>> isinstance(availability(), str)
        True
    """
    if os.environ.get(VARIABLE) == "off":
        return f"${VARIABLE} is off"
    return library().reason


def instructions() -> str:
    """What runs, for people: the set of instructions, and whether it has more than one thread.

    Example:
        >>> isinstance(instructions(), str)
        True
    """
    functions = library().functions
    alone = functions is not None and not functions.mixtura_has_threads()
    return variant() + (" on one thread, since torch has loaded no OpenMP that it can use" if alone else "")


def unsupported(x_TD: Tensor, experts: StackedMLP) -> str:
    """Why the kernel cannot compute these operands; empty where it can.

    Example:
        >>> one = torch.ones(1, 1, 1)
        >>> unsupported(torch.ones(1, 1, dtype=torch.float64), StackedMLP(up=one, down=one))
        'dtype torch.float64 is neither torch.float32 nor torch.bfloat16'
    """
    if x_TD.device.type != "cpu":
        return f"device {x_TD.device} is not the CPU"
    if x_TD.dtype not in DTYPE_CODES:
        return f"dtype {x_TD.dtype} is neither torch.float32 nor torch.bfloat16"
    if experts.activation.removeprefix(WOVEN_PREFIX) not in ACTIVATION_CODES:
        return f"activation {experts.activation!r} is not among {sorted(ACTIVATION_CODES)}"
    tensors = [tensor for tensor in (x_TD, *experts) if isinstance(tensor, Tensor)]
    if any(type(tensor) not in (Tensor, torch.nn.Parameter) for tensor in tensors):
        return "a subclass of Tensor may have no memory of its own"
    if any(tensor.dtype != x_TD.dtype or tensor.device != x_TD.device for tensor in tensors):
        return "the experts' matrices and x differ in dtype or device"
    return ""


def _problem(x_TD: Tensor, weight_N: Tensor, index: RowIndex, *, experts: StackedMLP, **buffers: Tensor) -> _Problem:
    """Sizes and addresses. The caller keeps all tensors, contiguous, until the call has returned."""
    slot_TK = index.slot_TK
    tensors = {
        "token": index.token_N,
        "count": index.counts_E,
        "slot": slot_TK,
        "x": x_TD,
        "weight": weight_N,
        "up": experts.up,
        "down": experts.down,
        "up_bias": experts.up_bias,
        "down_bias": experts.down_bias,
        **buffers,
    }
    E, D, F = experts.down.shape
    return _Problem(
        tokens=x_TD.shape[0],
        rows=index.token_N.shape[0],
        experts=E,
        dim=D,
        hidden=F,
        choices=0 if slot_TK is None else slot_TK.shape[1],
        dtype=DTYPE_CODES[x_TD.dtype],
        activation=ACTIVATION_CODES[experts.activation.removeprefix(WOVEN_PREFIX)],
        threads=torch.get_num_threads(),
        layout=_layout(experts),
        **{name: tensor.data_ptr() for name, tensor in tensors.items() if tensor is not None},
    )


def _call(name: str, problem: _Problem) -> None:
    if getattr(library().functions, name)(ctypes.byref(problem), variant().encode()):
        raise RuntimeError(f"{name} found no variant {variant()!r}")


def _is_transposed(matrices: Tensor) -> bool:
    return matrices.mT.is_contiguous() and not matrices.is_contiguous()


def _layout(experts: StackedMLP) -> int:
    woven = experts.activation.startswith(WOVEN_PREFIX)
    flags = (woven, WOVEN_COLUMNS), (_is_transposed(experts.up), UP_TRANSPOSED)
    return sum(flag for holds, flag in (*flags, (_is_transposed(experts.down), DOWN_TRANSPOSED)) if holds)


def _dense(experts: StackedMLP) -> StackedMLP:
    """Matrices that lie transposed stay so: the library reads them as they are, and writes their gradients alike."""
    up, down, up_bias, down_bias, activation = experts
    up, down = (matrices if _is_transposed(matrices) else matrices.contiguous() for matrices in (up, down))
    up_bias, down_bias = (bias if bias is None else bias.contiguous() for bias in (up_bias, down_bias))
    return StackedMLP(up, down, up_bias, down_bias, activation)


def _forward(
    x_TD: Tensor, weight_N: Tensor, index: RowIndex, *, experts: StackedMLP, keep_NF: Tensor | None, save: bool
) -> tuple[Tensor, Tensor | None]:
    """The output rows, and z where the backward pass will want it."""
    x, weight = x_TD.contiguous(), weight_N.float().contiguous()
    N = index.token_N.shape[0]
    buffers = {"y": x.new_empty(N, experts.down.shape[1])}
    if keep_NF is not None:
        buffers["keep"] = keep_NF = keep_NF.contiguous()
    if save:
        buffers["z"] = x.new_empty(N, experts.up.shape[1])
    experts = _dense(experts)  # kept here while the library reads it
    _call("mixtura_forward", _problem(x, weight, index, experts=experts, **buffers))
    return buffers["y"], buffers.get("z")


class _GroupedMLP(torch.autograd.Function):
    """For plain eager calls; traced ones go through the ops, since torch binds a setup_context's arguments slowly."""

    @staticmethod
    def forward(
        ctx: Any,
        x_TD: Tensor,
        weight_N: Tensor,
        up: Tensor,
        down: Tensor,
        up_bias: Tensor | None,
        down_bias: Tensor | None,
        keep_NF: Tensor | None,
        index: RowIndex,
        activation: str,
    ) -> Tensor:
        experts = StackedMLP(up, down, up_bias, down_bias, activation)
        y_ND, z = _forward(x_TD, weight_N, index, experts=experts, keep_NF=keep_NF, save=True)
        ctx.save_for_backward(x_TD, weight_N, up, down, up_bias, down_bias, keep_NF, z)
        ctx.index, ctx.activation = index, activation
        return y_ND

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, dy_ND: Tensor) -> tuple[Tensor | None, ...]:
        x_TD, weight_N, up, down, up_bias, down_bias, keep_NF, z = ctx.saved_tensors
        experts = _dense(StackedMLP(up, down, up_bias, down_bias, ctx.activation))
        buffers = {"z": z, "dy": dy_ND.contiguous()}
        if keep_NF is not None:
            buffers["keep"] = keep_NF.contiguous()
        grads = _gradients(
            x_TD.contiguous(), weight_N, ctx.index, experts=experts, wanted=ctx.needs_input_grad, buffers=buffers
        )
        return (*grads, None, None, None)


def _gradients(
    x_TD: Tensor,
    weight_N: Tensor,
    index: RowIndex,
    *,
    experts: StackedMLP,
    wanted: tuple[bool, ...],
    buffers: dict[str, Tensor],
) -> tuple[Tensor | None, ...]:
    """The gradients of x, the weights and the four matrices; None where they are not wanted."""
    N = index.token_N.shape[0]
    leaves: dict[str, Any] = {"dx": x_TD, "dweight": weight_N, "dup": experts.up, "ddown": experts.down}
    leaves |= {"dup_bias": experts.up_bias, "ddown_bias": experts.down_bias}
    out = {name: torch.empty_like(leaf) for (name, leaf), want in zip(leaves.items(), wanted, strict=False) if want}
    if "dx" in out and index.slot_TK is None:
        out["dx_rows"] = x_TD.new_empty(N, out.pop("dx").shape[1])
    if "dweight" in out:
        out["dweight"] = weight_N.new_empty(N, dtype=torch.float32)
    weight = weight_N.float().contiguous()
    _call("mixtura_backward", _problem(x_TD, weight, index, experts=experts, **buffers, **out))
    dx_TD = sum_rows(out["dx_rows"], index) if "dx_rows" in out else out.get("dx")
    dweight_N = out["dweight"].to(weight_N.dtype) if "dweight" in out else None
    return dx_TD, dweight_N, *(out.get(name) for name in ("dup", "ddown", "dup_bias", "ddown_bias"))


def _traced_forward(
    x_TD: Tensor, weight_N: Tensor, index: RowIndex, *, experts: StackedMLP, keep_NF: Tensor | None, keep_z: bool
) -> tuple[Tensor, Tensor]:
    y_ND, z = _forward(x_TD, weight_N, index, experts=experts, keep_NF=keep_NF, save=keep_z)
    return y_ND, x_TD.new_empty(0, experts.up.shape[1]) if z is None else z


def _traced_backward(
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
    buffers = {"z": z, "dy": dy_ND, **({} if keep_NF is None else {"keep": keep_NF})}
    return Gradients(*_gradients(x_TD, weight_N, index, experts=experts, wanted=wanted, buffers=buffers))


def takes_index(x: Tensor) -> bool:
    """Whether the library sums or sorts for this tensor: a plain one on a CPU, in no graph, no other kernel forced.

    Example:
        >>> takes_index(torch.zeros(1, device="meta"))
        False
    """
    if is_traced(x) or (x.requires_grad and torch.is_grad_enabled()):
        return False
    return x.device.type == "cpu" and type(x) is Tensor and forced.get() in (None, "native") and not availability()


def sum_slots(y_ND: Tensor, slot_TK: Tensor) -> Tensor:
    """Each token's sum of its rows, in fp32 or bf16; a slot of -1 adds nothing: (T, D).

    Example:
        >>> if takes_index(torch.zeros(1)):
        ...     assert sum_slots(torch.tensor([[1.0], [2.0]]), torch.tensor([[1, 0], [-1, 0]])).sum() == 4
    """
    y_ND, slot_TK = y_ND.contiguous(), slot_TK.contiguous()
    (T, K), D = slot_TK.shape, y_ND.shape[1]
    y_TD = y_ND.new_empty(T, D)
    sizes = {"tokens": T, "dim": D, "choices": K, "dtype": DTYPE_CODES[y_ND.dtype], "threads": torch.get_num_threads()}
    pointers = {"slot": slot_TK.data_ptr(), "dx_rows": y_ND.data_ptr(), "dx": y_TD.data_ptr()}
    _call("mixtura_sum_rows", _Problem(**sizes, **pointers))
    return y_TD


def sort_stably(number_N: Tensor, *, groups: int) -> tuple[Tensor, Tensor]:
    """Places of the numbers below `groups` in their order, then of all others, and how many there are of each.

    Example:
        >>> if takes_index(torch.zeros(1)):
        ...     assert sort_stably(torch.tensor([1, 2, 0]), groups=2)[0].tolist() == [2, 0, 1]
    """
    number_N, N = number_N.contiguous(), number_N.shape[0]
    order_N, counts = torch.empty_like(number_N), number_N.new_empty(groups)
    int64 = ctypes.c_int64
    library().functions.mixtura_group(  # type: ignore[union-attr]  # `takes_index` has asked
        *(ctypes.c_void_p(number_N.data_ptr()), int64(N), int64(groups)),
        *(ctypes.c_void_p(found.data_ptr()) for found in (order_N, counts)),
    )
    return order_N, counts


ops.register("native", forward=_traced_forward, backward=_traced_backward)


def grouped_mlp(
    x_TD: Tensor, weight_N: Tensor, index: RowIndex, *, experts: StackedMLP, keep_NF: Tensor | None = None
) -> Tensor:
    """`reference.grouped_mlp` by the compiled library; same arguments, same result up to the order of sums.

    Raises:
        UserError: the library cannot run here, or cannot compute these operands.

    Example:
        >>> index = RowIndex(torch.tensor([0]), torch.tensor([1]), torch.tensor([[0]]), 1, True)
        >>> experts = StackedMLP(up=torch.ones(1, 1, 1), down=torch.ones(1, 1, 1), activation="relu")
        >>> if not availability():
        ...     assert grouped_mlp(torch.tensor([[3.0]]), torch.tensor([0.5]), index, experts=experts).item() == 1.5
    """
    if is_traced(x_TD):
        return ops.call("native", x_TD, weight_N, index=index, experts=experts, keep_NF=keep_NF)
    reason = availability() or unsupported(x_TD, experts)
    if reason:
        raise UserError(f"expected operands and a machine for the native kernel: {reason}; use the cpu kernel")
    leaves = (x_TD, weight_N, *experts[:4])
    if torch.is_grad_enabled() and any(leaf is not None and leaf.requires_grad for leaf in leaves):
        result: Tensor = _GroupedMLP.apply(  # type: ignore[no-untyped-call]  # torch leaves it untyped
            *leaves, keep_NF, index, experts.activation
        )
        return result
    return _forward(x_TD, weight_N, index, experts=experts, keep_NF=keep_NF, save=False)[0]
