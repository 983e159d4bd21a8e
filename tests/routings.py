"""Routings written down by hand, for tests of what comes after a router."""

import torch
from torch import Tensor

from mixtura.routing import Routing


def make_routing(
    choices: list[list[int]],
    *,
    num_experts: int,
    weights: list[list[float]] | None = None,
    probs: list[list[float]] | None = None,
    logits: list[list[float]] | None = None,
    mask: list[bool] | None = None,
    load: Tensor | None = None,
    regular: bool = True,
) -> Routing:
    """choices[t] are the experts of token t, best first; without `regular` their number may differ."""
    T = len(choices)
    token = [t for t, row in enumerate(choices) for _ in row]
    weight = [w for row in weights for w in row] if weights else [1.0] * len(token)
    uniform = torch.full((T, num_experts), 1 / num_experts)
    return Routing(
        token_N=torch.tensor(token, dtype=torch.int64),
        expert_N=torch.tensor([e for row in choices for e in row], dtype=torch.int64),
        weight_N=torch.tensor(weight, dtype=torch.float32),
        logits_TE=torch.zeros(T, num_experts) if logits is None else torch.tensor(logits),
        probs_TE=uniform if probs is None else torch.tensor(probs),
        choices=len(choices[0]) if regular and choices else None,
        load_TE=load,
        mask_T=None if mask is None else torch.tensor(mask, dtype=torch.bool),
    )
