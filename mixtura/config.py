"""The recipe of a layer: plain values that a checkpoint can store."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, get_args

from mixtura.dispatch import Capacity, Policy
from mixtura.errors import UserError
from mixtura.experts import MLP, GroupedMLP
from mixtura.layer import MoE, SharedGate
from mixtura.pooling import Pooling
from mixtura.routers import ROUTERS
from mixtura.routers.base import Router
from mixtura.routers.dialects import Dialect


@dataclass(frozen=True, kw_only=True)
class MoEConfig:
    """The recipe of a layer: plain values that a checkpoint can store, with one `build()`.

    Attributes:
        dim: D.
        hidden: F of each expert.
        num_experts: E.
        k: experts per token; None: the router's own (2 for most).
        router: a name in `mixtura.routers.ROUTERS`; None: "topk", or what `gate` says.
        router_options: further arguments of that router.
        gate: in place of `router`, a gate as FastMoE and Paddle write it: `{"type": "gshard", "top_k": 2}`, with the
            papers' meaning; see `from_gate`.
        dialect: "fastmoe" or "paddle": `gate` exactly as that library has it, its differences to the papers included.
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
        chunk_tokens: see `MoE`.
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
    router: str | None = None
    router_options: Mapping[str, Any] = field(default_factory=dict)
    gate: Mapping[str, Any] | None = None
    dialect: str | None = None
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
    chunk_tokens: int | None = None
    losses: Mapping[str, float] = field(default_factory=dict)

    def fine_grained(self, parts: int) -> "MoEConfig":
        """The same layer with each expert cut into parts: E * m experts of width F / m, K * m of them per token.

        Parameters, active parameters and work stay the same, the router's matrix aside; the number of possible
        combinations grows. Source: Dai et al. 2024 (DeepSeekMoE), section 3.1.

        Args:
            parts: m.

        Raises:
            UserError: a number of parts below 1, or one that does not divide F; no k, or a router with a k of its own.

        Example:
            >>> fine = MoEConfig(dim=16, hidden=64, num_experts=8, k=2).fine_grained(4)
            >>> fine.num_experts, fine.hidden, fine.k
            (32, 16, 8)
        """
        if parts < 1 or self.hidden % parts:
            raise UserError(f"expected parts that divide hidden={self.hidden}, got {parts}")
        if self.k is None or not _kind(self.router).takes_k:
            raise UserError(
                f"expected k, and a router that takes it, got k={self.k} with router={self.router or 'topk'!r}"
            )
        return replace(self, num_experts=self.num_experts * parts, hidden=self.hidden // parts, k=self.k * parts)

    def build(self) -> MoE:
        """Make the layer.

        Raises:
            UserError: whatever a part refuses; an unknown router; a k that the router cannot have; a gate beside a
                router; a dialect without a gate.
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
            chunk_tokens=self.chunk_tokens,
            losses=self.losses,
            shared=shared,
            shared_gate=self.shared_gate,
        )

    def _build_router(self) -> Router:
        if self.gate is not None:
            if self.router is not None or self.router_options:
                raise UserError(f"expected gate or router, got both; router={self.router!r}; options go into the gate")
            return from_gate(self.gate, dim=self.dim, num_experts=self.num_experts, k=self.k, dialect=self.dialect)
        if self.dialect is not None:
            raise UserError(f"expected a dialect with a gate, got dialect={self.dialect!r} and no gate")
        kind, options = _kind(self.router), dict(self.router_options)
        if self.k is not None and kind.takes_k:
            options["k"] = self.k
        router = kind(self.dim, self.num_experts, **options)
        if self.k is not None and router.k != self.k:
            raise UserError(
                f"expected k={router.k} with router={self.router or 'topk'!r}, got k={self.k}; give that or leave k out"
            )
        return router


def from_gate(
    gate: Mapping[str, Any], *, dim: int, num_experts: int, k: int | None = None, dialect: str | None = None
) -> Router:
    """The router that a gate dict of those libraries asks for: `{"type": "gshard", "top_k": 2}`.

    Args:
        gate: "type": "naive", "gshard" or "switch"; "top_k": K, or the type's own; what else there is are arguments of
            the router, "dialect" among them.
        dim: D.
        num_experts: E.
        k: must agree with "top_k"; None: as the dict says.
        dialect: None or "paper": `TopK`, `GShard`, `Switch`, as the papers have them; "fastmoe" or "paddle": theirs.

    Raises:
        UserError: an unknown type or dialect, a "top_k" that the type cannot have or that differs from `k`.

    Example:
        >>> from_gate({"type": "naive", "top_k": 3}, dim=8, num_experts=4, dialect="paddle")
        NaiveGate(dim=8, num_experts=4, k=3, dialect=paddle)
        >>> from_gate({"type": "switch"}, dim=8, num_experts=4)
        Switch(dim=8, num_experts=4, k=1)
    """
    options: dict[str, Any] = {"dialect": dialect, "top_k": k, **gate}
    kind, dialect, top_k = options.pop("type", None), options.pop("dialect"), options.pop("top_k")
    kinds = {"naive": ("topk", "naive_gate"), "gshard": ("gshard", "gshard_gate"), "switch": ("switch", "switch_gate")}
    if kind not in kinds:
        raise UserError(f"expected a gate with a type among {', '.join(kinds)}, got {kind!r}")
    if dialect not in (None, "paper", *get_args(Dialect)):
        raise UserError(f"expected a dialect among paper, {', '.join(get_args(Dialect))}, got {dialect!r}")
    if k is not None and top_k != k:
        raise UserError(f"expected one number of choices, got k={k} and top_k={top_k} in the gate")
    if dialect not in (None, "paper"):
        options["dialect"] = dialect
    if kind == "naive":
        options["k"] = 2 if top_k is None else top_k
    elif top_k not in (None, 2 if kind == "gshard" else 1):
        raise UserError(f"expected top_k={2 if kind == 'gshard' else 1} with a {kind} gate, got {top_k}")
    router: Router = ROUTERS[kinds[kind]["dialect" in options]](dim, num_experts, **options)
    return router


def _kind(router: str | None) -> type[Router]:
    name = "topk" if router is None else router
    if name not in ROUTERS:
        raise UserError(f"expected a router among {sorted(ROUTERS)}, got {name!r}")
    return ROUTERS[name]
