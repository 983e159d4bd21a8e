"""The mixture-of-experts layer: route, dispatch, experts, combine, attach."""

from collections.abc import Mapping
from dataclasses import replace
from math import prod
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mixtura.dispatch import Capacity, Policy, check_policy, dispatch
from mixtura.errors import UserError
from mixtura.hooks import announce, once_per_forward
from mixtura.losses.apply import apply_losses, check_losses
from mixtura.pooling import Pooling, highest, vote
from mixtura.routers.base import Router
from mixtura.routing import Routing, Rows

SharedGate = Literal["sigmoid", "softmax"]


class MoE(nn.Module):
    """A drop-in for any feed-forward block: y = layer(x), shaped like x.

    Args:
        router: `x_TD -> Routing`.
        experts: `Rows -> y_ND`, with a `num_experts` equal to the router's. Experts with a `row_shape` take tokens of
            several dimensions (images, sequences); experts of another output width give (..., D_out).
        capacity_factor: rows per expert as a multiple of the even share N / E; None: dropless, or as `capacity` says.
        capacity: the same with fixed, smallest and largest numbers, see `Capacity`.
        eval_capacity: the capacity in evaluation; None: as in training. `Capacity()` is dropless.
        policy: who is kept when an expert is full, see `dispatch`.
        losses: name -> coefficient, of `mixtura.losses`; they act in training only.
        shared: a module that every token passes, added to the experts' output (DeepSeekMoE).
        shared_gate: weight the shared module by "sigmoid" of x w per token (Qwen2-MoE), or the experts and the shared
            module by the two values of a "softmax" (residual MoE: Rajbhandari et al. 2022, section 4.1.1).
        pooling: what evaluation makes of a token's experts: "sum" by weight, "highest": the output of the expert with
            the largest weight alone, "vote": each class's share of the experts' votes, for classifiers.
        chunk_tokens: compute so many tokens at a time after they are routed, and again in the backward pass: what long
            inputs need beside themselves then depends on this number alone. None: all at once.

    Raises:
        UserError: router and experts that disagree on E or D, an unknown loss, policy or pooling, two capacities, a
            gate without a shared module, chunks below 1 or with a capacity; in `forward`, an input of another shape, a
            mask, priority or context that has not one value per token, no context where the router needs one.

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
        capacity: Capacity | None = None,
        eval_capacity: Capacity | None = None,
        policy: Policy = "drop",
        losses: Mapping[str, float] | None = None,
        shared: nn.Module | None = None,
        shared_gate: SharedGate | None = None,
        pooling: Pooling = "sum",
        chunk_tokens: int | None = None,
    ) -> None:
        super().__init__()
        losses = dict(losses or {})
        _check_parts(router, experts)
        check_losses(losses)
        check_policy(policy)
        if pooling not in get_args(Pooling):
            raise UserError(f"expected a pooling among {', '.join(get_args(Pooling))}, got {pooling!r}")
        if capacity_factor is not None and capacity is not None:
            raise UserError("expected capacity_factor or capacity, got both; give Capacity(factor=...) alone")
        if shared_gate is not None and (shared is None or shared_gate not in get_args(SharedGate)):
            raise UserError(
                f'expected shared_gate None, or "sigmoid" or "softmax" beside a shared module, got {shared_gate!r} '
                f"with shared={'None' if shared is None else type(shared).__name__}"
            )
        self.router, self.experts, self.shared = router, experts, shared
        self.shared_gate = nn.Linear(router.dim, 1 + (shared_gate == "softmax"), bias=False) if shared_gate else None
        self.capacity = capacity or Capacity(factor=capacity_factor)
        self.eval_capacity = eval_capacity or self.capacity
        self.policy, self.losses, self.pooling, self.chunk_tokens = policy, losses, pooling, chunk_tokens
        if chunk_tokens is not None and (chunk_tokens < 1 or {self.capacity, self.eval_capacity} != {Capacity()}):
            raise UserError(
                f"expected chunk_tokens of at least 1 and no capacity, got {chunk_tokens} with {self.capacity}"
            )
        self.row_shape: tuple[int, ...] = getattr(experts, "row_shape", None) or (router.dim,)

    def forward(
        self,
        x: Tensor,
        *,
        mask: Tensor | None = None,
        priority: Tensor | None = None,
        context: Tensor | None = None,
    ) -> Tensor:
        """Mix the experts: (..., D) -> (..., D).

        Args:
            x: the tokens.
            mask: bool (...), False for padding: routed nowhere, counted in no loss. Its values must be finite all the
                same, since the router's gradient passes over them.
            priority: (...), each token's score for policy "priority" (urgency); None: its largest gate weight.
            context: (...) or (..., C), what a router knows of each token beside x: token ids for `Hash`, a task.
        """
        tokens = _check_input(x, self.row_shape, mask=mask, priority=priority, context=context)
        x_TD = x.reshape(prod(tokens), prod(self.row_shape))
        routing = self._route(x_TD, tokens, mask=mask, context=context)
        served = highest(routing) if self.pooling == "highest" and not self.training else routing
        rows = dispatch(
            served,
            x_TD,
            capacity=self._capacity(routing),
            policy=self.policy,
            priority_T=None if priority is None else priority.reshape(-1),
        )
        if self.chunk_tokens is None or x_TD.shape[0] <= self.chunk_tokens:
            y_TD = self._combine(rows, x_TD, bypass_TD=served.bypass_TD)
        else:
            y_TD = self._in_chunks(served, x_TD, size=self.chunk_tokens)
        if self.training and torch.is_grad_enabled():
            y_TD = apply_losses(self, y_TD, routing, coefficients=self.losses)
        announce(self, routing, rows)
        return y_TD.view(x.shape) if y_TD.shape == x_TD.shape else y_TD.view(*tokens, -1)

    def _route(self, x_TD: Tensor, tokens: torch.Size, *, mask: Tensor | None, context: Tensor | None) -> Routing:
        known: dict[str, Tensor | int | None] = {}
        sequences = prod(tokens[:-1])
        mask_T = None if mask is None else mask.reshape(-1)
        if self.router.needs_mask:
            known["mask_T"] = mask_T
        if self.router.needs_context:
            if context is None:
                raise UserError(f"expected context= for a {type(self.router).__name__} router, got None")
            known["context_T"] = context.reshape(x_TD.shape[0], *context.shape[len(tokens) :])
        if self.router.needs_sequences:
            known["sequences"] = sequences
        routing: Routing = self.router(x_TD, **known)
        routing = replace(routing, mask_T=mask_T, sequences=sequences)
        if mask_T is not None and routing.bypass_TD is not None:
            routing = replace(routing, bypass_TD=routing.bypass_TD.masked_fill(~mask_T.unsqueeze(1), 0))
        if self.router.training and type(self.router).observe is not Router.observe:
            once_per_forward(self.router, lambda: self.router.observe(routing))
        return routing

    def _capacity(self, routing: Routing) -> int | None:
        capacity = self.capacity if self.training else self.eval_capacity
        return capacity.rows(routing.expert_N.shape[0], num_experts=routing.num_experts) if routing.num_tokens else None

    def _in_chunks(self, routing: Routing, x_TD: Tensor, *, size: int) -> Tensor:
        if getattr(self.experts, "runs_beside", False):  # other ranks may have another number of chunks, and would wait
            raise UserError("expected no chunk_tokens with experts on other ranks, got both; parallelize has chunks=")

        def one(start: int) -> Tensor:
            part, chunk_TD = routing.part(start, start + size), x_TD[start : start + size]
            return self._combine(dispatch(part, chunk_TD), chunk_TD, bypass_TD=part.bypass_TD)

        starts = range(0, x_TD.shape[0], size)
        if torch.is_grad_enabled():
            return torch.cat([checkpoint(one, start, use_reentrant=False) for start in starts])
        return torch.cat([one(start) for start in starts])

    def _combine(self, rows: Rows, x_TD: Tensor, *, bypass_TD: Tensor | None) -> Tensor:
        if self.pooling == "vote" and not self.training:
            return vote(rows, self.experts)
        shared_TD: Tensor | None = None
        if (shared := self.shared) is not None and getattr(self.experts, "runs_beside", False):
            # The rows are on their way to other ranks meanwhile.
            y_ND, shared_TD = self.experts(rows, meanwhile=lambda: shared(x_TD))
        else:
            y_ND = self.experts(rows)
        y_TD: Tensor = rows.combine(y_ND).to(x_TD.dtype)
        if bypass_TD is not None:
            y_TD = y_TD + bypass_TD.to(y_TD.dtype)
        if shared is None:
            return y_TD
        shared_TD = shared(x_TD) if shared_TD is None else shared_TD
        if self.shared_gate is None:
            return y_TD + shared_TD.to(y_TD.dtype)
        score = self.shared_gate(x_TD)
        if score.shape[1] == 1:
            return y_TD + (shared_TD * torch.sigmoid(score)).to(y_TD.dtype)
        share = score.float().softmax(-1).to(y_TD.dtype)
        mixed_TD: Tensor = y_TD * share[:, :1] + shared_TD.to(y_TD.dtype) * share[:, 1:]
        return mixed_TD

    def extra_repr(self) -> str:
        """What print(model) shows beside the parts."""
        shown = {"policy": self.policy, "pooling": self.pooling, "losses": self.losses}
        capacity = [f"capacity={self.capacity}"] if self.capacity != Capacity() else []
        if self.eval_capacity != self.capacity:
            capacity.append(f"eval_capacity={self.eval_capacity}")
        return ", ".join([*capacity, *(f"{name}={value}" for name, value in shown.items())])


def _check_input(x: Tensor, row_shape: tuple[int, ...], **per_token: Tensor | None) -> torch.Size:
    """The shape of the tokens: that of x without the dimensions of one row."""
    split = x.ndim - len(row_shape)
    if split < 0 or x.shape[split:] != row_shape:
        width = f"width D={row_shape[0]}" if len(row_shape) == 1 else f"shape (..., {', '.join(map(str, row_shape))})"
        raise UserError(f"expected x of {width}, got shape {tuple(x.shape)}")
    tokens = x.shape[:split]
    for name, values in per_token.items():
        if values is not None and (values.shape[:split] if name == "context" else values.shape) != tokens:
            expected, got = tuple(tokens), tuple(values.shape)
            raise UserError(f"expected {name} with one value per token, of shape {expected}, got {got}")
    mask = per_token["mask"]
    if mask is not None and mask.dtype is not torch.bool:
        raise UserError(f"expected mask of dtype torch.bool (False: padding), got {mask.dtype}; use mask.bool()")
    return tokens


def _check_parts(router: Router, experts: nn.Module) -> None:
    num_experts = getattr(experts, "num_experts", None)
    if num_experts != router.num_experts:
        raise UserError(f"expected experts for the router's {router.num_experts}, got num_experts={num_experts}")
    dim = getattr(experts, "dim", router.dim)
    if dim != router.dim:
        raise UserError(f"expected router and experts of one width, got dim={router.dim} and dim={dim}")
