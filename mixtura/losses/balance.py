"""Losses of a routing. Padding is masked out of each, and an assignment without an expert (-1) counts in none.

Null experts count as experts here: what balances the others against them is the same rule.

Example:
    >>> sorted(LOSSES)[:4]
    ['entropy', 'fastmoe_gshard', 'global_load_balance', 'gshard']
"""

from collections.abc import Callable

import torch
from torch import Tensor

from mixtura.ranks import sum_over_ranks
from mixtura.routing import Routing, SlotRouting


def _mean_over_tokens(values: Tensor, mask_T: Tensor | None) -> Tensor:
    """The mean over the real tokens; 0 where there are none."""
    if mask_T is None:
        return values.sum(0) / max(values.shape[0], 1)
    real = mask_T.view(-1, *(1,) * (values.ndim - 1))
    return values.masked_fill(~real, 0).sum(0) / mask_T.sum().clamp(min=1)


def _cv_squared(values_E: Tensor) -> Tensor:
    if values_E.shape[0] == 1:
        return values_E.sum() * 0
    return values_E.var(correction=0) / (values_E.mean().square() + 1e-10)


def _balance(counts_E: Tensor, probs_TE: Tensor, mask_T: Tensor | None) -> Tensor:
    """E * sum_e (c_e / sum c) * mean_t p_te."""
    share_E = counts_E.to(probs_TE.dtype) / counts_E.sum().clamp(min=1)
    return counts_E.shape[0] * (share_E @ _mean_over_tokens(probs_TE, mask_T))


def load_balance(routing: Routing) -> Tensor:
    """E / (K T) * sum_e c_e * mean_t p_te, with c_e the assignments of expert e; at least 1, and 1 when balanced.

    Source: Fedus et al. 2021 (Switch), equation 4, with f_e counted over all K choices. Hugging Face's version has the
    minimum K: its coefficient c is c * K here.

    Example:
        >>> p = torch.full((2, 2), 0.5)
        >>> routing = Routing.from_choices(torch.tensor([[0], [1]]), torch.ones(2, 1), logits_TE=p, probs_TE=p)
        >>> load_balance(routing).item()
        1.0
    """
    return _balance(routing.route_counts(), routing.probs_TE, routing.mask_T)


def sequence_load_balance(routing: Routing) -> Tensor:
    """`load_balance` of each sequence by itself, mean over the sequences: no text may lean on a few experts alone.

    Of the layer's input (..., L, D) each row of L tokens is a sequence. Sequences of padding alone do not count.

    Source: DeepSeek-AI 2024 (DeepSeek-V3), equations 17 to 20, its complementary loss, coefficient 1e-4. Here c counts
    the choices that were made, bias included; the paper's counts those that would be made without it.

    Example:
        >>> from dataclasses import replace
        >>> p = torch.eye(2)
        >>> routing = Routing.from_choices(torch.tensor([[0], [1]]), p[:, :1], logits_TE=p, probs_TE=p)
        >>> load_balance(routing).item(), sequence_load_balance(replace(routing, sequences=2)).item()
        (1.0, 2.0)
    """
    B, (T, E) = routing.sequences, routing.probs_TE.shape
    if T == 0:
        return routing.probs_TE.sum()
    probs_BLE = routing.probs_TE.view(B, T // B, E)
    counts_BE = _counts_by_sequence(routing)
    if routing.mask_T is None:
        real_B = probs_BLE.new_full((B,), T // B)
    else:
        probs_BLE = probs_BLE.masked_fill(~routing.mask_T.view(B, -1, 1), 0)
        real_B = routing.mask_T.view(B, -1).sum(1)
    share_BE = counts_BE / counts_BE.sum(1, keepdim=True).clamp(min=1)
    loss_B = E * (share_BE * probs_BLE.sum(1)).sum(1) / real_B.clamp(min=1)
    return loss_B.sum() / (real_B > 0).sum().clamp(min=1)


def _counts_by_sequence(routing: Routing) -> Tensor:
    """Assignments of each expert from each sequence's tokens: int64 (B, E). Slots serve all sequences alike."""
    B, (T, E) = routing.sequences, routing.probs_TE.shape
    if isinstance(routing, SlotRouting):
        return routing.route_counts().expand(B, E)
    place_N = routing.token_N // (T // B) * (E + 1) + routing.routes_N()
    counts = place_N.new_zeros(B * (E + 1)).scatter_add_(0, place_N, torch.ones_like(place_N))
    return counts.view(B, E + 1)[:, :E]


def global_load_balance(routing: Routing) -> Tensor:
    """`load_balance` with the counts of all ranks and the probabilities of this one: sequences may specialise.

    The ranks' gradients average to that of one loss over the whole batch. It sums E numbers over all ranks, per layer
    and forward: every rank must run the layer equally often, if need be on an input of 0 tokens. Without a process
    group it is `load_balance`.

    Source: Qiu et al. 2025 ("Demons in the Detail").

    Example:
        >>> p = torch.eye(2)
        >>> routing = Routing.from_choices(torch.tensor([[0], [0]]), torch.ones(2, 1), logits_TE=p, probs_TE=p)
        >>> global_load_balance(routing).item()
        1.0
    """
    return _balance(sum_over_ranks(routing.route_counts()), routing.probs_TE, routing.mask_T)


def gshard(routing: Routing) -> Tensor:
    """mean_e(c_e / T * m_e) * E^2, with c_e the first choices of expert e and m_e = mean_t p_te; 1 when balanced.

    With K = 1 it is `load_balance`; with more choices the others do not count.

    Source: Lepikhin et al. 2020 (GShard), section 2.2, algorithm 1; times E^2, so that its size does not depend on E.

    Example:
        >>> p = torch.tensor([[0.5, 0.25, 0.25], [0.5, 0.25, 0.25]])
        >>> routing = Routing.from_choices(torch.tensor([[0, 1], [0, 2]]), p[:, :2], logits_TE=p, probs_TE=p)
        >>> gshard(routing).item()
        1.5
    """
    E, first_T = routing.probs_TE.shape[1], routing.first_choice_T()
    is_none_T = first_T < 0 if routing.mask_T is None else (first_T < 0) | ~routing.mask_T
    counts = first_T.new_zeros(E + 1).scatter_add_(0, first_T.where(~is_none_T, E), torch.ones_like(first_T))
    return _balance(counts[:E], routing.probs_TE, routing.mask_T)


def entropy(routing: Routing) -> Tensor:
    """Mean over tokens of -sum_e p_te log p_te, in nats: from 0 (certain) to log E (uniform).

    A positive coefficient makes each token's routing sharper, as routers with a varying number of choices need (Huang
    et al. 2024, "Harder Tasks Need More Experts"); a negative one makes it more even.

    Example:
        >>> p = torch.full((2, 2), 0.5)
        >>> routing = Routing.from_choices(torch.tensor([[0], [1]]), torch.ones(2, 1), logits_TE=p, probs_TE=p)
        >>> round(entropy(routing).item(), 4)
        0.6931
    """
    probs_TE = routing.probs_TE
    # The clamp keeps 0 * log 0 at 0; torch.special.entr does too, and takes twice as long.
    entropy_T = -(probs_TE * probs_TE.clamp(min=torch.finfo(probs_TE.dtype).tiny).log()).sum(-1)
    return _mean_over_tokens(entropy_T, routing.mask_T)


def z_loss(routing: Routing) -> Tensor:
    """mean_t (logsumexp_e l_te)^2: keeps the router's logits small.

    Source: Zoph et al. 2022 (ST-MoE), equation 5.

    Example:
        >>> routing = Routing.from_choices(
        ...     torch.tensor([[0]]), torch.ones(1, 1), logits_TE=torch.tensor([[2.0]]), probs_TE=torch.ones(1, 1)
        ... )
        >>> z_loss(routing).item()
        4.0
    """
    return _mean_over_tokens(routing.logits_TE.logsumexp(-1).square(), routing.mask_T)


def importance(routing: Routing) -> Tensor:
    """Squared coefficient of variation of each expert's summed weights: CV^2 = var / (mean^2 + 1e-10), var over E.

    The variance is the population's. Source: Shazeer et al. 2017, equations 6 and 7. V-MoE (Riquelme et al. 2021,
    appendix A) sums the probabilities of all experts instead, chosen or not.

    Example:
        >>> p = torch.eye(2)
        >>> routing = Routing.from_choices(torch.tensor([[0], [0]]), torch.ones(2, 1), logits_TE=p, probs_TE=p)
        >>> round(importance(routing).item(), 6)
        1.0
    """
    routes = routing.probs_TE.shape[1]
    sums = routing.weight_N.new_zeros(routes + 1).index_add(0, routing.routes_N(), routing.weight_N)
    return _cv_squared(sums[:routes])


def load(routing: Routing) -> Tensor:
    """Squared coefficient of variation of each expert's expected number of tokens under fresh noise.

    A router without noise, or with K = E, has no smooth estimate: its plain counts are used, without a gradient.

    Source: Shazeer et al. 2017, appendix A, equation 11.

    Example:
        >>> p = torch.eye(2)
        >>> routing = Routing.from_choices(torch.tensor([[0], [1]]), torch.ones(2, 1), logits_TE=p, probs_TE=p)
        >>> load(routing).item()
        0.0
    """
    if routing.load_TE is None:
        return _cv_squared(routing.route_counts().to(routing.probs_TE.dtype))
    load_TE = routing.load_TE
    if routing.mask_T is not None:
        load_TE = load_TE.masked_fill(~routing.mask_T.unsqueeze(-1), 0)
    return _cv_squared(load_TE.sum(0))


def _choices_made(routing: Routing, k: int) -> Tensor:
    """How often each expert is among the k best of a token, those included that were given up later: (E,)."""
    best_TK = routing.logits_TE.detach().topk(k, dim=-1).indices
    is_best_TE = torch.zeros_like(routing.logits_TE).scatter(1, best_TK, 1.0)
    if routing.mask_T is not None:
        is_best_TE = is_best_TE.masked_fill(~routing.mask_T.unsqueeze(1), 0)
    return is_best_TE.sum(0)


def fastmoe_gshard(routing: Routing) -> Tensor:
    """mean_e(c_e / T * m_e) * E^2 over the best experts of all tokens, whether they were dropped or not (`GShardGate`).

    Source: FastMoE's GShard gate; with nothing dropped it is GShard's own loss.

    Example:
        >>> p = torch.tensor([[0.75, 0.25], [0.75, 0.25]])
        >>> routing = Routing.from_choices(torch.tensor([[0], [-1]]), p[:, :1], logits_TE=p.log(), probs_TE=p)
        >>> fastmoe_gshard(routing).item()
        1.5
    """
    return _balance(_choices_made(routing, 1), routing.probs_TE, routing.mask_T)


def paddle_gshard(routing: Routing) -> Tensor:
    """`fastmoe_gshard` with all K choices of each token in the counts, still over T (`GShardGate`): at least K.

    Source: Paddle's incubate GShard gate.

    Example:
        >>> p = torch.tensor([[0.75, 0.25], [0.75, 0.25]])
        >>> routing = Routing.from_choices(torch.tensor([[0, 1], [0, -1]]), p, logits_TE=p.log(), probs_TE=p)
        >>> paddle_gshard(routing).item()
        2.0
    """
    K = routing.choices or 1
    return K * _balance(_choices_made(routing, K), routing.probs_TE, routing.mask_T)


def switch_gate(routing: Routing) -> Tensor:
    """E * sum_e kept_e / V * sum_t p_te / V, with V the tokens that were kept: it grows as more are dropped.

    Source: the Switch gates of FastMoE and Paddle (`SwitchGate`); with nothing dropped it is `load_balance`.

    Example:
        >>> p = torch.full((4, 2), 0.5)
        >>> expert = torch.tensor([[0], [-1], [1], [-1]])
        >>> switch_gate(Routing.from_choices(expert, p[:, :1], logits_TE=p, probs_TE=p, partial=True)).item()
        2.0
    """
    kept_E = routing.route_counts().to(routing.probs_TE.dtype)
    V = kept_E.sum().clamp(min=1)
    probs_TE = routing.probs_TE
    if routing.mask_T is not None:
        probs_TE = probs_TE.masked_fill(~routing.mask_T.unsqueeze(1), 0)
    return kept_E.shape[0] * (kept_E / V @ (probs_TE.sum(0) / V))


LOSSES: dict[str, Callable[[Routing], Tensor]] = {
    "load_balance": load_balance,
    "sequence_load_balance": sequence_load_balance,
    "global_load_balance": global_load_balance,
    "gshard": gshard,
    "importance": importance,
    "load": load,
    "z": z_loss,
    "entropy": entropy,
    "fastmoe_gshard": fastmoe_gshard,
    "paddle_gshard": paddle_gshard,
    "switch_gate": switch_gate,
}
