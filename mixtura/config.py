"""The recipe of a layer: plain values that a checkpoint can store."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mixtura.dispatch import Capacity, Policy
from mixtura.errors import UserError
from mixtura.experts import MLP, GroupedMLP
from mixtura.layer import MoE, SharedGate
from mixtura.pooling import Pooling
from mixtura.routers import ROUTERS
from mixtura.routers.base import Router


@dataclass(frozen=True, kw_only=True)
class MoEConfig:
    """The recipe of a layer: plain values that a checkpoint can store, with one `build()`.

    Attributes:
        dim: D.
        hidden: F of each expert.
        num_experts: E.
        k: experts per token; None: the router's own (2 for most).
        router: a name in `mixtura.routers.ROUTERS`.
        router_options: further arguments of that router.
        activation: see `GroupedMLP`.
        bias: see `GroupedMLP`.
        dropout: see `GroupedMLP`.
        shared_hidden: hidden width of a shared expert that every token passes; 0: none.
        shared_gate: see `MoE`.
        capacity_factor: see `MoE`; None: dropless.
        capacity: see `MoE`.
        eval_capacity: see `MoE`.
        policy: see `MoE`.
        pooling: see `MoE`.
        losses: see `MoE`.

    Example:
        >>> layer = MoEConfig(dim=16, hidden=32, num_experts=4, k=2, router="topk").build()
        >>> import torch
        >>> layer(torch.zeros(3, 16)).shape
        torch.Size([3, 16])
    """

    dim: int
    hidden: int
    num_experts: int
    k: int | None = None
    router: str = "topk"
    router_options: Mapping[str, Any] = field(default_factory=dict)
    activation: str = "swiglu"
    bias: bool = False
    dropout: float = 0.0
    shared_hidden: int = 0
    shared_gate: SharedGate | None = None
    capacity_factor: float | None = None
    capacity: Capacity | None = None
    eval_capacity: Capacity | None = None
    policy: Policy = "drop"
    pooling: Pooling = "sum"
    losses: Mapping[str, float] = field(default_factory=dict)

    def build(self) -> MoE:
        """Make the layer.

        Raises:
            UserError: whatever a part refuses; an unknown router; a k that the router cannot have.
        """
        shared = None
        if self.shared_hidden:
            shared = MLP(dim=self.dim, hidden=self.shared_hidden, activation=self.activation, bias=self.bias)
        return MoE(
            router=self._build_router(),
            experts=GroupedMLP(
                num_experts=self.num_experts,
                dim=self.dim,
                hidden=self.hidden,
                activation=self.activation,
                bias=self.bias,
                dropout=self.dropout,
            ),
            capacity_factor=self.capacity_factor,
            capacity=self.capacity,
            eval_capacity=self.eval_capacity,
            policy=self.policy,
            pooling=self.pooling,
            losses=self.losses,
            shared=shared,
            shared_gate=self.shared_gate,
        )

    def _build_router(self) -> Router:
        if self.router not in ROUTERS:
            raise UserError(f"expected a router among {sorted(ROUTERS)}, got {self.router!r}")
        kind, options = ROUTERS[self.router], dict(self.router_options)
        if self.k is not None and kind.takes_k:
            options["k"] = self.k
        router = kind(self.dim, self.num_experts, **options)
        if self.k is not None and router.k != self.k:
            raise UserError(f"expected k={router.k} with router={self.router!r}, got k={self.k}; leave k out")
        return router
