"""The router's contract: `x_TD -> Routing`, computed in fp32 whatever the layer's dtype."""

import warnings
from collections.abc import Callable
from typing import ClassVar, TypedDict, Unpack

import torch
from torch import Tensor, nn

from mixtura.errors import UserError
from mixtura.hooks import replayed
from mixtura.routing import Routing


def check_router(*, dim: int, num_experts: int, k: int) -> None:
    """Refuse sizes that no router can have.

    Raises:
        UserError: a size below 1, or more choices than experts.

    Example:
        >>> check_router(dim=8, num_experts=2, k=3)
        Traceback (most recent call last):
        ...
        mixtura.errors.UserError: expected 1 <= k <= num_experts, got k=3 with num_experts=2; choose a smaller k
    """
    for name, value in (("dim", dim), ("num_experts", num_experts)):
        if value < 1:
            raise UserError(f"expected {name} of at least 1, got {value}")
    if not 1 <= k <= num_experts:
        raise UserError(f"expected 1 <= k <= num_experts, got k={k} with num_experts={num_experts}; choose a smaller k")


def warn_of_constant_weight() -> None:
    """Warn that one choice with a normalised weight teaches the router nothing.

    Example:
        >>> with warnings.catch_warnings(record=True, action="always") as caught:
        ...     warn_of_constant_weight()
        >>> len(caught)
        1
    """
    # The level leads out of here and the router's __init__, to the line that makes the router.
    warnings.warn(
        "with k=1 a weight normalised over the chosen expert is always 1, so the task gives the router no gradient; "
        "use a router that does not: Switch, or TopK and SigmoidBias with renormalize=False",
        stacklevel=3,
    )


def top_k(scores_TE: Tensor, k: int) -> Tensor:
    """Indices of the k largest scores of each row, best first: int64 (T, K).

    One choice goes through max, which is several times faster than topk on a CPU.

    Example:
        >>> top_k(torch.tensor([[0.1, 0.9, 0.5]]), 2).tolist()
        [[1, 2]]
    """
    scores_TE = scores_TE.detach()
    if k == 1:
        return scores_TE.max(-1, keepdim=True).indices
    return scores_TE.topk(k, dim=-1).indices


class GateOptions(TypedDict, total=False):
    """What every router with a gate takes beside its own arguments; see `Router`.

    Example:
        >>> options: GateOptions = {"jitter": 0.01}
    """

    gate: nn.Module | None
    jitter: float
    temperature: float | None
    init_std: float | None


class Router(nn.Module):
    """Base of routers: a gate that scores tokens in fp32, by default one matrix. A subclass implements `forward`.

    `forward(x_TD) -> Routing`; with `needs_mask` it is also given `mask_T`, with `needs_context` also `context_T`.

    Args:
        dim: D, width of the tokens.
        num_experts: E.
        k: K, experts per token.
        gate: a module (T, D) -> (T, E) in place of the matrix: an MLP, a cosine gate; see also `Gate`.
        jitter: in training the input is multiplied by U[1 - jitter, 1 + jitter] (Fedus et al. 2021, section 2.2).
        temperature: the logits are divided by it; None: 1, and fixed. See `set_temperature`.
        init_std: standard deviation of the matrix's initial weights; None: 0.1 / sqrt(D), which keeps the first
            routing close to uniform.

    Attributes:
        takes_k: the number of choices is an argument, and not part of the method.
        needs_mask: the choice of one token depends on the others, so that padding must be known.
        needs_context: `MoE.forward` must be given a `context`.
        is_causal: a token's routing depends on no later token, as language models need.

    Shapes:
        weight: (E, D), or None with a gate of one's own.

    Raises:
        UserError: see `check_router`; a jitter outside [0, 1), a temperature that is not positive; in `forward`, a gate
            that gives anything but (T, E).

    Example:
        >>> Router(8, num_experts=2).logits(torch.zeros(3, 8)).shape
        torch.Size([3, 2])
        >>> Router(8, num_experts=2, gate=nn.Linear(8, 5)).logits(torch.zeros(3, 8))
        Traceback (most recent call last):
        ...
        mixtura.errors.UserError: expected logits of shape (T, E) = (3, 2) from the gate, got (3, 5)
    """

    takes_k: ClassVar[bool] = True
    needs_mask: ClassVar[bool] = False
    needs_context: ClassVar[bool] = False
    is_causal: ClassVar[bool] = True
    temperature: Tensor | None

    def __init__(self, dim: int, num_experts: int, k: int = 1, **options: Unpack[GateOptions]) -> None:
        super().__init__()
        check_router(dim=dim, num_experts=num_experts, k=k)
        unknown = sorted(set(options) - set(GateOptions.__annotations__))
        if unknown:
            known = ", ".join(GateOptions.__annotations__)
            raise TypeError(f"expected router options among {known} and its own, got {', '.join(unknown)}")
        jitter, temperature = options.get("jitter", 0.0), options.get("temperature")
        if not 0 <= jitter < 1:
            raise UserError(f"expected 0 <= jitter < 1, got {jitter}")
        if temperature is not None and not temperature > 0:
            raise UserError(f"expected a temperature above 0, got {temperature}")
        init_std = options.get("init_std")
        self.dim, self.num_experts, self.k, self.jitter = dim, num_experts, k, jitter
        self.init_std = 0.1 * dim**-0.5 if init_std is None else init_std
        self.gate = options.get("gate")
        self.weight = nn.Parameter(torch.empty(self.num_logits, dim)) if self.gate is None else None
        self.register_buffer("temperature", None if temperature is None else torch.tensor(float(temperature)))
        # Not self.reset_parameters(): a subclass's own tensors do not exist yet.
        Router.reset_parameters(self)

    @property
    def num_logits(self) -> int:
        """Columns of the logits: E, unless a subclass scores more than experts."""
        return self.num_experts

    def reset_parameters(self) -> None:
        """Set every parameter and buffer afresh, as after `to_empty`; a subclass with more of them extends this."""
        if self.weight is not None:
            nn.init.normal_(self.weight, std=self.init_std)

    def logits(self, x_TD: Tensor, *context: Tensor) -> Tensor:
        """The gate's scores in fp32, with jitter in training, over the temperature: (T, E)."""
        with torch.autocast(x_TD.device.type, enabled=False):
            x_TD = x_TD.float()
            if self.jitter and self.training:
                x_TD = x_TD * torch.empty_like(x_TD).uniform_(1 - self.jitter, 1 + self.jitter)
            if self.weight is not None:
                logits_TE = nn.functional.linear(x_TD, self.weight.float())
            else:
                logits_TE = self._gate_logits(x_TD, *context)
            return logits_TE if self.temperature is None else logits_TE / self.temperature.float()

    def _gate_logits(self, x_TD: Tensor, *context: Tensor) -> Tensor:
        assert self.gate is not None
        dtype = next((p.dtype for p in self.gate.parameters() if p.is_floating_point()), torch.float32)
        logits_TE: Tensor = self.gate(x_TD.to(dtype), *context)
        expected = (x_TD.shape[0], self.num_logits)
        if logits_TE.shape != expected:
            got = tuple(logits_TE.shape)
            raise UserError(f"expected logits of shape (T, E) = {expected} from the gate, got {got}")
        return logits_TE.float()

    def decide(self, choose: Callable[[], Tensor], *, num_tokens: int) -> Tensor:
        """What `choose` gives; in `mixtura.replay` what was recorded. Every choice of a router goes through here."""
        logged: Routing | None = replayed(self)
        if logged is None:
            return choose()
        if logged.num_tokens != num_tokens:
            raise UserError(
                f"expected {logged.num_tokens} tokens, as recorded, got {num_tokens}; replay the same input"
            )
        return self.decision(logged)

    def decision(self, routing: Routing) -> Tensor:
        """The choice that a routing came from, as `decide` returned it: int64 (T, K)."""
        return routing.expert_N.view(routing.num_tokens, -1)

    def top_k(self, scores_TE: Tensor) -> Tensor:
        """The K best experts of each token, best first, or those of a replay: int64 (T, K)."""
        return self.decide(lambda: top_k(scores_TE, self.k), num_tokens=scores_TE.shape[0])

    def forward(self, x_TD: Tensor) -> Routing:
        """Route the tokens: (T, D) -> Routing."""
        raise TypeError(f"{type(self).__name__} defines no forward(x_TD) -> Routing for {tuple(x_TD.shape)} tokens")

    def observe(self, routing: Routing) -> None:
        """See what was routed: the layer calls it once per training forward, never again under recomputation."""

    def extra_repr(self) -> str:
        """Sizes, for print(model)."""
        return f"dim={self.dim}, num_experts={self.num_experts}, k={self.k}"


def set_temperature(model: nn.Module, temperature: float) -> None:
    """Set the temperature of every router of a model that was built with one.

    Raises:
        UserError: no router has a temperature, or it is not positive.

    Example:
        >>> router = Router(8, num_experts=2, temperature=2.0)
        >>> set_temperature(router, 0.5); router.temperature.item()
        0.5
    """
    if not temperature > 0:
        raise UserError(f"expected a temperature above 0, got {temperature}")
    routers = [m for m in model.modules() if isinstance(m, Router) and m.temperature is not None]
    if not routers:
        raise UserError("expected a router with a temperature, got none; build it with temperature=1.0")
    for router in routers:
        assert router.temperature is not None
        router.temperature.fill_(temperature)
