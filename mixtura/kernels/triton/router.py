"""Token choice in one kernel: softmax, the K largest, their weights and the experts' counts, from logits read once.

Each choice takes the maximum of one 64-bit number per expert: the logit, mapped to an integer of the same order, above
the expert's number counted backwards. So among equal logits the first expert wins, a NaN counts as the largest as in
torch.topk, and masked experts (-inf) are chosen only when no other is left. Compiled for compute capability 9.0 and
run by the interpreter, but it has never met a GPU.
"""

from typing import Any

import torch
from torch import Tensor

from mixtura.errors import UserError
from mixtura.kernels.choice import MAX_CHOICES, MAX_EXPERTS
from mixtura.kernels.triton.configs import Config
from mixtura.kernels.triton.language import tl, triton
from mixtura.kernels.triton.launch import Launch

# "chosen": weights are a softmax over the chosen logits, which a renormalised softmax over all is too. "all": of all.
NORMALIZED_OVER = ("chosen", "all")
_TILE = 2048  # logits of one program


@triton.jit
def route_kernel(
    logits_TE,
    probs_TE,
    expert_TK,
    weight_TK,
    counts_E,
    T,
    E,
    K: tl.constexpr,
    OVER_CHOSEN: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One program for each BLOCK_T tokens."""
    t = (tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)).to(tl.int64)
    e, k = tl.arange(0, BLOCK_E), tl.arange(0, BLOCK_K)
    is_t, is_e = (t < T)[:, None], (e < E)[None, :]
    logits = tl.load(logits_TE + t[:, None] * E + e[None, :], mask=is_t & is_e, other=-float("inf"))
    largest = tl.max(tl.where(is_t, logits, 0.0), axis=1)[:, None]
    powers = tl.exp(tl.where(is_t, logits, 0.0) - largest)
    probs = powers / tl.sum(tl.where(is_e, powers, 0.0), axis=1)[:, None]
    tl.store(probs_TE + t[:, None] * E + e[None, :], probs, mask=is_t & is_e)

    bits = (logits + 0.0).to(tl.int32, bitcast=True)  # -0.0 becomes 0.0: the two are equal
    order = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    order = tl.where(logits != logits, 0x7FFFFFFF, order).to(tl.int64)
    packed = tl.where(is_e, (order << 32) | (BLOCK_E - 1 - e)[None, :].to(tl.int64), -(2**63))
    expert = tl.zeros((BLOCK_T, BLOCK_K), dtype=tl.int32)
    weight = tl.zeros((BLOCK_T, BLOCK_K), dtype=tl.float32)
    counts = tl.zeros((BLOCK_E,), dtype=tl.int32)
    for choice in tl.static_range(K):
        best = BLOCK_E - 1 - (tl.max(packed, axis=1) & 0xFFFFFFFF).to(tl.int32)
        is_best = e[None, :] == best[:, None]
        packed = tl.where(is_best, -(2**63), packed)
        value = tl.sum(tl.where(is_best, probs, 0.0), axis=1)
        expert = tl.where((k == choice)[None, :], best[:, None], expert)
        weight = tl.where((k == choice)[None, :], value[:, None], weight)
        counts += tl.sum((is_best & is_t).to(tl.int32), axis=0)
    if OVER_CHOSEN:
        weight = weight / tl.sum(weight, axis=1)[:, None]
    place, is_stored = t[:, None] * K + k[None, :], is_t & (k < K)[None, :]
    tl.store(expert_TK + place, expert.to(tl.int64), mask=is_stored)
    tl.store(weight_TK + place, weight, mask=is_stored)
    # Whole numbers add up to the same in any order: atomics do no harm here.
    tl.atomic_add(counts_E + e, counts.to(tl.int64), mask=(e < E) & (counts > 0))


@triton.jit
def route_backward_kernel(
    probs_TE,
    expert_TK,
    weight_TK,
    dprobs_TE,
    dweight_TK,
    dlogits_TE,
    T,
    E,
    K: tl.constexpr,
    OVER_CHOSEN: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One program for each BLOCK_T tokens: through the weights' softmax to the chosen, through probs' to all."""
    t = (tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)).to(tl.int64)
    e, k = tl.arange(0, BLOCK_E), tl.arange(0, BLOCK_K)
    is_t, is_e = (t < T)[:, None], (e < E)[None, :]
    place, mask = t[:, None] * E + e[None, :], is_t & is_e
    probs = tl.load(probs_TE + place, mask=mask, other=0.0)
    dprobs = tl.load(dprobs_TE + place, mask=mask, other=0.0)
    at, is_chosen = t[:, None] * K + k[None, :], is_t & (k < K)[None, :]
    weight = tl.load(weight_TK + at, mask=is_chosen, other=0.0)
    dweight = tl.load(dweight_TK + at, mask=is_chosen, other=0.0)
    expert = tl.load(expert_TK + at, mask=is_chosen, other=-1).to(tl.int32)
    if OVER_CHOSEN:
        dweight = weight * (dweight - tl.sum(weight * dweight, axis=1)[:, None])
    direct = tl.zeros((BLOCK_T, BLOCK_E), dtype=tl.float32)
    for choice in tl.static_range(K):
        is_this = (k == choice)[None, :]
        best = tl.sum(tl.where(is_this, expert, 0), axis=1)
        value = tl.sum(tl.where(is_this, dweight, 0.0), axis=1)
        direct += tl.where(e[None, :] == best[:, None], value[:, None], 0.0)
    if OVER_CHOSEN:
        dlogits = direct + probs * (dprobs - tl.sum(probs * dprobs, axis=1)[:, None])
    else:
        dprobs += direct
        dlogits = probs * (dprobs - tl.sum(probs * dprobs, axis=1)[:, None])
    tl.store(dlogits_TE + place, dlogits, mask=mask)


def _launch(name: str, kernel: Any, arguments: dict[str, Any], *, T: int, E: int, K: int, over: str) -> Launch:
    block_e = triton.next_power_of_2(E)
    config = Config(max(1, _TILE // block_e), block_e, triton.next_power_of_2(K), num_warps=4, num_stages=1)
    sizes = {"T": T, "E": E, "K": K, "OVER_CHOSEN": over == "chosen"}
    blocks = {"BLOCK_T": config.block_m, "BLOCK_E": config.block_n, "BLOCK_K": config.block_k}
    grid = (triton.cdiv(T, config.block_m),)
    return Launch(name=name, kernel=kernel, grid=grid, arguments={**arguments, **sizes, **blocks}, config=config)


def route_launch(logits_TE: Tensor, *, k: int, over: str) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor], Launch]:
    """Probabilities (T, E), weights (T, K), experts (T, K) and counts (E,), still to be written, and the kernel."""
    T, E = logits_TE.shape
    probs_TE, weight_TK = torch.empty_like(logits_TE), logits_TE.new_empty(T, k)
    expert_TK = torch.empty(T, k, dtype=torch.int64, device=logits_TE.device)
    counts_E = torch.zeros(E, dtype=torch.int64, device=logits_TE.device)
    arguments = {"logits_TE": logits_TE, "probs_TE": probs_TE, "expert_TK": expert_TK, "weight_TK": weight_TK}
    launch = _launch("route", route_kernel, {**arguments, "counts_E": counts_E}, T=T, E=E, K=k, over=over)
    return (probs_TE, weight_TK, expert_TK, counts_E), launch


def route_backward_launch(
    dprobs_TE: Tensor, dweight_TK: Tensor, *, probs_TE: Tensor, weight_TK: Tensor, expert_TK: Tensor, over: str
) -> tuple[Tensor, Launch]:
    """The logits' gradient, still to be written, and the kernel."""
    (T, E), K = probs_TE.shape, weight_TK.shape[1]
    dlogits_TE = torch.empty_like(probs_TE)
    arguments = {
        "probs_TE": probs_TE,
        "expert_TK": expert_TK,
        "weight_TK": weight_TK,
        "dprobs_TE": dprobs_TE,
        "dweight_TK": dweight_TK,
        "dlogits_TE": dlogits_TE,
    }
    return dlogits_TE, _launch("route backward", route_backward_kernel, arguments, T=T, E=E, K=K, over=over)


@torch.library.custom_op("mixtura::triton_route", mutates_args=())
def _route(logits_TE: Tensor, k: int, over: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    found, launch = route_launch(logits_TE.contiguous(), k=k, over=over)
    launch.run()
    return found


@_route.register_fake
def _(logits_TE: Tensor, k: int, over: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # noqa: ARG001  # a signature
    T, E = logits_TE.shape
    probs_TE = torch.empty_like(logits_TE, memory_format=torch.contiguous_format)
    expert_TK = logits_TE.new_empty(T, k, dtype=torch.int64)
    return probs_TE, logits_TE.new_empty(T, k), expert_TK, logits_TE.new_empty(E, dtype=torch.int64)


@torch.library.custom_op("mixtura::triton_route_backward", mutates_args=())
def _route_backward(
    dprobs_TE: Tensor, dweight_TK: Tensor, probs_TE: Tensor, weight_TK: Tensor, expert_TK: Tensor, over: str
) -> Tensor:
    dlogits_TE, launch = route_backward_launch(
        dprobs_TE.contiguous(),
        dweight_TK.contiguous(),
        probs_TE=probs_TE,
        weight_TK=weight_TK,
        expert_TK=expert_TK,
        over=over,
    )
    launch.run()
    return dlogits_TE


@_route_backward.register_fake
def _(dprobs_TE: Tensor, *others: Any) -> Tensor:  # noqa: ARG001  # a signature
    return torch.empty_like(dprobs_TE, memory_format=torch.contiguous_format)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.over = inputs[2]
    ctx.mark_non_differentiable(*output[2:])
    ctx.save_for_backward(*output[:3])


def _differentiate(ctx: Any, dprobs_TE: Tensor, dweight_TK: Tensor, *_: Any) -> tuple[Tensor, None, None]:
    return _route_backward(dprobs_TE, dweight_TK, *ctx.saved_tensors, ctx.over), None, None


_route.register_autograd(_differentiate, setup_context=_keep)


def route(logits_TE: Tensor, *, k: int, over: str = "chosen") -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Choose the k experts with the largest logits; of equal ones the first. Differentiable in the first two results.

    Args:
        logits_TE: float32 (T, E), E at most 512.
        k: at most 16.
        over: what the weights are a softmax over: "chosen" experts, or "all".

    Returns:
        probs_TE: (T, E), the softmax over all experts.
        weight_TK: (T, K).
        expert_TK: int64 (T, K), best first.
        counts_E: int64 (E,), how often each was chosen.

    Raises:
        UserError: other sizes, another dtype, an unknown `over`.

    Example:
        >>> route(torch.zeros(1, 2), k=3)
        Traceback (most recent call last):
        ...
        mixtura.errors.UserError: expected 1 <= k <= min(E, 16) for the fused router, got k=3 with E=2
    """
    E = logits_TE.shape[1]
    if not 1 <= k <= min(E, MAX_CHOICES):
        raise UserError(f"expected 1 <= k <= min(E, {MAX_CHOICES}) for the fused router, got k={k} with E={E}")
    if E > MAX_EXPERTS or logits_TE.dtype is not torch.float32:
        got = f"{logits_TE.dtype} with E={E}"
        raise UserError(f"expected float32 logits of at most {MAX_EXPERTS} experts for the fused router, got {got}")
    if over not in NORMALIZED_OVER:
        raise UserError(f"expected weights normalised over one of {NORMALIZED_OVER}, got {over!r}")
    probs_TE, weight_TK, expert_TK, counts_E = _route(logits_TE, k, over)
    return probs_TE, weight_TK, expert_TK, counts_E
