"""Token choice in one kernel: softmax, the K largest, their weights and the experts' counts, from logits read once.

Each choice takes the maximum of one 64-bit number per expert: the logit, mapped to an integer of the same order, above
the expert's number counted backwards. So among equal logits the first expert wins, a NaN counts as the largest as in
torch.topk, and masked experts (-inf) are chosen only when no other is left. Compiled for compute capability 9.0 and
run by the interpreter, but it has never met a GPU.
"""

from typing import Any

import torch
from torch import Tensor

from mixtura.kernels.triton.configs import Config
from mixtura.kernels.triton.language import tl, triton
from mixtura.kernels.triton.launch import Launch

MAX_EXPERTS, MAX_CHOICES = 512, 16
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
