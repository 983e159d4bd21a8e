"""The mixture-of-experts layer: route, dispatch, experts, combine, attach."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from mixtura.dispatch import Policy, dispatch, expert_capacity
from mixtura.errors import UserError
from mixtura.experts import MLP, GroupedMLP
from mixtura.losses import LOSSES, apply_losses
from mixtura.routers import ROUTERS, Router
from mixtura.routing import Routing, announce, is_recomputing


class MoE(nn.Module):
    """A drop-in for any feed-forward block: y = layer(x), shaped like x.

    Args:
        router: `x_TD -> Routing`.
        experts: `Rows -> y_ND`, with a `num_experts` equal to the router's.
        capacity_factor: rows per expert as a multiple of the even share T*K/E; None: dropless.
        eval_capacity_factor: the same in evaluation; None: as in training.
        capacity_multiple: round the capacity up to a multiple of this (V-MoE: 4).
        policy: who is kept when an expert is full, see `dispatch`: "drop" or "priority".
        losses: name -> coefficient, of `mixtura.losses.LOSSES`; they act in training only.
        shared: a module that every token passes, added to the experts' output (DeepSeekMoE).
        shared_gate: weight the shared module by sigmoid(x w) per token (Qwen2-MoE).

    Raises:
        UserError: router and experts that disagree on E or D, an unknown loss or policy, a capacity factor or multiple
            that is not positive, a gate without a shared module; in `forward`, an input of another width, a mask or
            priority that has not one value per token.

    Example:
        >>> import mixtura as mx
        >>> layer = mx.MoE(
        ...     router=mx.routers.TopK(dim=16, num_experts=8, k=2),
        ...     experts=mx.GroupedMLP(num_experts=8, dim=16, hidden=32, activation="swiglu"),
        ...     losses={"load_balance": 1e-2, "z": 1e-3},
        ... )
        >>> layer(torch.randn(2, 5, 16)).shape
        torch.Size([2, 5, 16])
    """

    def __init__(
        self,
        *,
        router: Router,
        experts: nn.Module,
        capacity_factor: float | None = None,
        eval_capacity_factor: float | None = None,
        capacity_multiple: int = 1,
        policy: Policy = "drop",
        losses: Mapping[str, float] | None = None,
        shared: nn.Module | None = None,
        shared_gate: bool = False,
    ) -> None:
        super().__init__()
        losses = dict(losses or {})
        _check_parts(router, experts, losses)
        for name, factor in (("capacity_factor", capacity_factor), ("eval_capacity_factor", eval_capacity_factor)):
            if factor is not None and factor <= 0:
                raise UserError(f"expected {name} above 0, or None for dropless, got {factor}")
        if capacity_multiple < 1:
            raise UserError(f"expected capacity_multiple of at least 1, got {capacity_multiple}")
        if policy not in ("drop", "priority"):
            raise UserError(f'expected policy "drop" or "priority", got {policy!r}')
        if shared_gate and shared is None:
            raise UserError("expected a shared module for shared_gate=True, got shared=None")
        self.router, self.experts, self.shared = router, experts, shared
        self.shared_gate = nn.Linear(router.dim, 1, bias=False) if shared_gate else None
        self.capacity_factor, self.eval_capacity_factor = capacity_factor, eval_capacity_factor
        self.capacity_multiple, self.policy, self.losses = capacity_multiple, policy, losses

    def forward(self, x: Tensor, *, mask: Tensor | None = None, priority: Tensor | None = None) -> Tensor:
        """Mix the experts: (..., D) -> (..., D).

        Args:
            x: the tokens.
            mask: bool (...), False for padding: routed nowhere, counted in no loss. Its values must be finite all the
                same, since the router's gradient passes over them.
            priority: (...), each token's score for policy "priority" (urgency); None: its largest gate weight.
        """
        _check_input(x, dim=self.router.dim, mask=mask, priority=priority)
        x_TD = x.reshape(-1, x.shape[-1])
        routing = self._route(x_TD, mask)
        rows = dispatch(
            routing,
            x_TD,
            capacity=self._capacity(routing),
            policy=self.policy,
            priority_T=None if priority is None else priority.reshape(-1),
        )
        y_TD: Tensor = rows.combine(self.experts(rows)).to(x.dtype)
        y_TD = self._add_shared(y_TD, x_TD)
        if self.training and torch.is_grad_enabled():
            y_TD = apply_losses(self, y_TD, routing, coefficients=self.losses)
        if not is_recomputing():
            announce(self, routing, rows)
        return y_TD.view(x.shape)

    def _route(self, x_TD: Tensor, mask: Tensor | None) -> Routing:
        routing: Routing = self.router(x_TD)
        if mask is not None:
            routing = replace(routing, mask_T=mask.reshape(-1))
        if self.training and not is_recomputing():
            self.router.observe(routing)
        return routing

    def _capacity(self, routing: Routing) -> int | None:
        factor = self.capacity_factor
        if not self.training and self.eval_capacity_factor is not None:
            factor = self.eval_capacity_factor
        if factor is None or routing.num_tokens == 0:
            return None
        # N assignments with one choice each are T tokens with K; this also holds where K differs from token to token.
        return expert_capacity(
            routing.expert_N.shape[0],
            num_experts=routing.num_experts,
            k=1,
            factor=factor,
            multiple_of=self.capacity_multiple,
        )

    def _add_shared(self, y_TD: Tensor, x_TD: Tensor) -> Tensor:
        if self.shared is None:
            return y_TD
        shared_TD: Tensor = self.shared(x_TD)
        if self.shared_gate is not None:
            shared_TD = shared_TD * torch.sigmoid(self.shared_gate(x_TD))
        return y_TD + shared_TD.to(y_TD.dtype)

    def extra_repr(self) -> str:
        """What print(model) shows beside the parts."""
        return f"capacity_factor={self.capacity_factor}, policy={self.policy}, losses={self.losses}"


def _check_input(x: Tensor, *, dim: int, mask: Tensor | None, priority: Tensor | None) -> None:
    if x.shape[-1] != dim:
        raise UserError(f"expected x of width D={dim}, got shape {tuple(x.shape)}")
    for name, values in (("mask", mask), ("priority", priority)):
        if values is not None and values.shape != x.shape[:-1]:
            expected, got = tuple(x.shape[:-1]), tuple(values.shape)
            raise UserError(f"expected {name} with one value per token, of shape {expected}, got {got}")
    if mask is not None and mask.dtype is not torch.bool:
        raise UserError(f"expected mask of dtype torch.bool (False: padding), got {mask.dtype}; use mask.bool()")


def _check_parts(router: Router, experts: nn.Module, losses: Mapping[str, float]) -> None:
    num_experts = getattr(experts, "num_experts", None)
    if num_experts != router.num_experts:
        raise UserError(f"expected experts for the router's {router.num_experts}, got num_experts={num_experts}")
    dim = getattr(experts, "dim", router.dim)
    if dim != router.dim:
        raise UserError(f"expected router and experts of one width, got dim={router.dim} and dim={dim}")
    unknown = sorted(set(losses) - set(LOSSES))
    if unknown:
        raise UserError(f"expected losses among {sorted(LOSSES)}, got {', '.join(map(repr, unknown))}")


@dataclass(frozen=True, kw_only=True)
class MoEConfig:
    """The recipe of a layer: plain values that a checkpoint can store, with one `build()`.

    Attributes:
        dim: D.
        hidden: F of each expert.
        num_experts: E.
        k: experts per token.
        router: a name in `mixtura.routers.ROUTERS`.
        router_options: further arguments of that router.
        activation: see `GroupedMLP`.
        bias: see `GroupedMLP`.
        shared_hidden: hidden width of a shared expert that every token passes; 0: none.
        shared_gate: see `MoE`.
        capacity_factor: see `MoE`; None: dropless.
        eval_capacity_factor: see `MoE`.
        capacity_multiple: see `MoE`.
        policy: see `MoE`.
        losses: see `MoE`.

    Example:
        >>> layer = MoEConfig(dim=16, hidden=32, num_experts=4, k=2, router="topk").build()
        >>> layer(torch.zeros(3, 16)).shape
        torch.Size([3, 16])
    """

    dim: int
    hidden: int
    num_experts: int
    k: int = 2
    router: str = "topk"
    router_options: Mapping[str, Any] = field(default_factory=dict)
    activation: str = "swiglu"
    bias: bool = False
    shared_hidden: int = 0
    shared_gate: bool = False
    capacity_factor: float | None = None
    eval_capacity_factor: float | None = None
    capacity_multiple: int = 1
    policy: Policy = "drop"
    losses: Mapping[str, float] = field(default_factory=dict)

    def build(self) -> MoE:
        """Make the layer.

        Raises:
            UserError: whatever a part refuses; an unknown router; k other than 1 with "switch".
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
            ),
            capacity_factor=self.capacity_factor,
            eval_capacity_factor=self.eval_capacity_factor,
            capacity_multiple=self.capacity_multiple,
            policy=self.policy,
            losses=self.losses,
            shared=shared,
            shared_gate=self.shared_gate,
        )

    def _build_router(self) -> Router:
        if self.router not in ROUTERS:
            raise UserError(f"expected a router among {sorted(ROUTERS)}, got {self.router!r}")
        options = dict(self.router_options)
        if self.router == "switch":
            if self.k != 1:
                raise UserError(f'expected k=1 with router="switch", got k={self.k}; use router="topk"')
        else:
            options["k"] = self.k
        return ROUTERS[self.router](self.dim, self.num_experts, **options)
