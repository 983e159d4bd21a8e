"""The optimizer: parameter groups by role, one fused AdamW, a warm-up and cosine schedule."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from mixtura.errors import UserError
from mixtura.roles import param_groups


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW with warm-up, cosine decay, and learning rates of their own for routers and experts.

    Raises:
        UserError: a value out of its range.

    Example:
        >>> OptimConfig(lr=1e-3).expert_lr
        1.0
    """

    lr: float = 3e-3
    """Learning rate at its peak."""
    router_lr: float = 1.0
    """Learning rate of the routers, as a multiple of lr."""
    expert_lr: float = 1.0
    """Learning rate of the experts, as a multiple of lr."""
    weight_decay: float = 0.1
    """Decay of all matrices but routers and embeddings; norms and biases have none."""
    beta1: float = 0.9
    """AdamW's first decay."""
    beta2: float = 0.95
    """AdamW's second decay."""
    warmup: int = 100
    """Steps of linear warm-up."""
    min_lr: float = 0.05
    """Learning rate at the end, as a share of the peak."""
    grad_clip: float = 1.0
    """Largest norm of all gradients together; 0: no clipping."""

    def __post_init__(self) -> None:
        for name in ("lr", "router_lr", "expert_lr"):
            if not getattr(self, name) > 0:
                raise UserError(f"optim.{name}: expected more than 0, got {getattr(self, name)}")
        for name in ("weight_decay", "warmup", "grad_clip"):
            if not getattr(self, name) >= 0:
                raise UserError(f"optim.{name}: expected at least 0, got {getattr(self, name)}")
        for name in ("lr", "router_lr", "expert_lr", "weight_decay", "grad_clip"):
            if not math.isfinite(getattr(self, name)):
                raise UserError(f"optim.{name}: expected a finite number, got {getattr(self, name)}")
        for name in ("beta1", "beta2", "min_lr"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"optim.{name}: expected at least 0 and below 1, got {getattr(self, name)}")


def parameter_groups(model: nn.Module, config: OptimConfig) -> list[dict[str, Any]]:
    """`mixtura.param_groups` with the configuration's rates; each group carries its `peak_lr`.

    Example:
        >>> import mixtura as mx
        >>> model = nn.Sequential(nn.Linear(4, 4), mx.MoEConfig(dim=4, hidden=8, num_experts=2).build())
        >>> [(group["role"], len(group["params"])) for group in parameter_groups(model, OptimConfig())]
        [('rest', 1), ('rest', 1), ('routers', 1), ('experts', 2)]
    """
    groups = param_groups(
        model,
        lr=config.lr,
        router_lr=config.lr * config.router_lr,
        expert_lr=config.lr * config.expert_lr,
        weight_decay=config.weight_decay,
    )
    return [group | {"peak_lr": group["lr"]} for group in groups]


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW over `parameter_groups`, fused.

    Example:
        >>> build_optimizer(nn.Linear(2, 2), OptimConfig()).param_groups[0]["role"]
        'rest'
    """
    groups = parameter_groups(model, config)
    return torch.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), fused=True)


def lr_share(step: int, *, steps: int, warmup: int, min_lr: float) -> float:
    """Learning rate of step 0, 1, ... as a share of its peak: linear warm-up, then half a cosine down to `min_lr`.

    Example:
        >>> [round(lr_share(s, steps=11, warmup=1, min_lr=0.0), 3) for s in (0, 1, 6, 10)]
        [1.0, 1.0, 0.5, 0.024]
    """
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return min_lr + (1 - min_lr) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def set_lr(optimizer: torch.optim.Optimizer, share: float) -> None:
    """Set every group's learning rate to a share of its peak.

    Example:
        >>> optimizer = build_optimizer(nn.Linear(2, 2), OptimConfig(lr=0.5))
        >>> set_lr(optimizer, 0.5); optimizer.param_groups[0]["lr"]
        0.25
    """
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * share
