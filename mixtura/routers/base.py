"""The router's contract: `x_TD -> Routing`, computed in fp32 at least, whatever the layer's dtype."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import ClassVar, Self, TypedDict, Unpack

import torch
from torch import Tensor, nn

from mixtura.errors import UserError
from mixtura.hooks import replayed
from mixtura.routers.null import NullExperts
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


def widen(x: Tensor) -> Tensor:
    """The tensor in the precision in which routers compute: at least fp32; a float64 model stays in float64.

    Example:
        >>> widen(torch.zeros(1, dtype=torch.bfloat16)).dtype, widen(torch.zeros(1, dtype=torch.float64)).dtype
        (torch.float32, torch.float64)
    """
    return x.to(torch.promote_types(x.dtype, torch.float32))


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


def both_choices(logits_TE: Tensor, expert_TK: Tensor) -> Tensor:
    """Put the best other expert in place of a choice that was given up, whose score still counts: int64 (T, K).

    Example:
        >>> both_choices(torch.tensor([[3.0, 1.0, 2.0]]), torch.tensor([[0, -1]])).tolist()
        [[0, 2]]
    """
    chosen_T1 = expert_TK.max(-1, keepdim=True).values.clamp(min=0)
    return expert_TK.where(expert_TK >= 0, top_k(logits_TE.scatter(1, chosen_T1, -torch.inf), 1))


class GateOptions(TypedDict, total=False):
    """What every router with a gate takes beside its own arguments; see `Router`.

    Example:
        >>> options: GateOptions = {"jitter": 0.01}
    """

    gate: nn.Module | None
    jitter: float
    temperature: float | None
    init_std: float | None
    noise: float | str
    null_experts: Mapping[str, int] | None


class Router(nn.Module):
    """Base of routers: a gate that scores tokens in fp32, by default one matrix. A subclass implements `forward`.

    `forward(x_TD) -> Routing`; with `needs_mask` it is also given `mask_T`, with `needs_context` `context_T`, with
    `needs_sequences` the number of `sequences`.

    Args:
        dim: D, width of the tokens.
        num_experts: E.
        k: K, experts per token.
        gate: a module (T, D) -> (T, E) in place of the matrix: an MLP, a cosine gate; see also `Gate`.
        jitter: in training the input is multiplied by U[1 - jitter, 1 + jitter] (Fedus et al. 2021, section 2.2).
        temperature: the logits are divided by it; None: 1, and fixed. See `set_temperature`.
        init_std: standard deviation of the matrix's initial weights; None: 0.1 / sqrt(D), which keeps the first
            routing close to uniform.
        noise: in training the logits get normal noise of this standard deviation; "1/E": of 1 / num_experts, as V-MoE
            does (Riquelme et al. 2021, section 2.2; with `TopK(order="softmax_topk")`).
        null_experts: kind -> number of further experts that cost nothing, see `NullExperts`; their logits come last.

    Attributes:
        takes_k: the number of choices is an argument, and not part of the method.
        takes_null_experts: its tokens can choose null experts.
        has_gate: it scores the tokens, by a matrix or a gate of one's own.
        needs_mask: the choice of one token depends on the others, so that padding must be known.
        needs_context: `MoE.forward` must be given a `context`.
        needs_sequences: tokens of different sequences must not meet, so that their number must be known.
        is_causal: in evaluation a token's routing depends on no later token, as language models need.
        frozen: names of the parameters that `freeze` froze; None: the router learns.

    Shapes:
        weight: (E, D), or None with a gate of one's own; with J null experts (E + J, D).

    Raises:
        UserError: see `check_router`; a jitter outside [0, 1), a temperature that is not positive, a negative noise,
            null experts where the router has none; in `forward`, a gate that gives anything but (T, E); in
            `reset_parameters`, a gate with parameters that cannot be reset.

    Example:
        >>> Router(8, num_experts=2).logits(torch.zeros(3, 8)).shape
        torch.Size([3, 2])
        >>> Router(8, num_experts=2, gate=nn.Linear(8, 5)).logits(torch.zeros(3, 8))
        Traceback (most recent call last):
        ...
        mixtura.errors.UserError: expected logits of shape (T, E) = (3, 2) from the gate, got (3, 5)
    """

    takes_k: ClassVar[bool] = True
    takes_null_experts: ClassVar[bool] = False
    has_gate: ClassVar[bool] = True
    needs_mask: ClassVar[bool] = False
    needs_context: bool = False  # of a `Gate` each instance has its own
    needs_sequences: ClassVar[bool] = False
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
        noise = options.get("noise", 0.0)
        if noise != "1/E" and (isinstance(noise, str) or not noise >= 0):
            raise UserError(f'expected noise of at least 0, or "1/E", got {noise!r}')
        init_std, null_experts = options.get("init_std"), options.get("null_experts")
        if null_experts and not self.takes_null_experts:
            raise UserError(f"expected null_experts with TopK, Switch, TopP or Gate, got {type(self).__name__}")
        self.dim, self.num_experts, self.k, self.jitter = dim, num_experts, k, jitter
        self.noise = 1 / num_experts if isinstance(noise, str) else float(noise)
        self.init_std = 0.1 * dim**-0.5 if init_std is None else init_std
        self.null_experts = NullExperts(dim, null_experts) if null_experts else None
        self.frozen: tuple[str, ...] | None = None
        self.gate = options.get("gate")
        has_matrix = self.has_gate and self.gate is None
        self.weight = nn.Parameter(torch.empty(self.num_logits, dim)) if has_matrix else None
        self.initial_temperature = 1.0 if temperature is None else float(temperature)
        self.register_buffer("temperature", None if temperature is None else torch.tensor(self.initial_temperature))
        self._reset_matrix()

    @property
    def num_logits(self) -> int:
        """Columns of the logits: E and the null experts, unless a subclass scores something else."""
        return self.num_experts + (0 if self.null_experts is None else self.null_experts.count)

    def reset_parameters(self) -> None:
        """Set every parameter and buffer afresh, as after `to_empty`; a subclass with more of them extends this."""
        self._reset_matrix()
        if self.temperature is not None:
            self.temperature.fill_(self.initial_temperature)
        if self.null_experts is not None:
            self.null_experts.reset_parameters()
        for module in () if self.gate is None else self.gate.modules():
            reset = getattr(module, "reset_parameters", None)
            if reset is not None:
                reset()
            elif next(module.parameters(recurse=False), None) is not None:
                raise UserError(f"expected a gate whose parts have reset_parameters, got {type(module).__name__}")

    def _reset_matrix(self) -> None:
        if self.weight is not None:
            nn.init.normal_(self.weight, std=self.init_std)

    def logits(self, x_TD: Tensor, *context: Tensor) -> Tensor:
        """The gate's scores in fp32, with the noise of training: (T, E)."""
        return self.perturb(self.clean_logits(x_TD, *context))

    def perturb(self, logits_TE: Tensor) -> Tensor:
        """Add the noise, in training only: (T, E)."""
        if not (self.noise and self.training):
            return logits_TE
        return logits_TE + self.noise * torch.randn_like(logits_TE)

    def clean_logits(self, x_TD: Tensor, *context: Tensor) -> Tensor:
        """The gate's scores in fp32, with jitter in training, over the temperature, before any noise: (T, E)."""
        with torch.autocast(x_TD.device.type, enabled=False):
            x_TD = widen(x_TD)
            if self.jitter and self.training:
                x_TD = x_TD * torch.empty_like(x_TD).uniform_(1 - self.jitter, 1 + self.jitter)
            if self.weight is not None:
                logits_TE = nn.functional.linear(x_TD, self.weight.to(x_TD.dtype))
            else:
                logits_TE = self._gate_logits(x_TD, *context)
            return logits_TE if self.temperature is None else logits_TE / self.temperature.to(logits_TE.dtype)

    def _gate_logits(self, x_TD: Tensor, *context: Tensor) -> Tensor:
        assert self.gate is not None
        tensors = dict(self.gate.named_parameters())
        half = {name: widen(p) for name, p in tensors.items() if p.dtype in (torch.bfloat16, torch.float16)}
        arguments = (x_TD, *context)
        # A gate kept in half precision computes in fp32 all the same, as the matrix does.
        logits_TE = torch.func.functional_call(self.gate, half, arguments) if half else self.gate(*arguments)
        expected = (x_TD.shape[0], self.num_logits)
        got = tuple(logits_TE.shape) if isinstance(logits_TE, Tensor) else type(logits_TE).__name__
        if got != expected:
            raise UserError(f"expected logits of shape (T, E) = {expected} from the gate, got {got}")
        result: Tensor = widen(logits_TE)
        return result

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
        # Without tokens -1 would be ambiguous.
        return routing.expert_N.view(routing.num_tokens, routing.choices or -1)

    def top_k(self, scores_TE: Tensor) -> Tensor:
        """The K best experts of each token, best first, or those of a replay: int64 (T, K)."""
        return self.decide(lambda: top_k(scores_TE, self.k), num_tokens=scores_TE.shape[0])

    def routing(
        self,
        x_TD: Tensor,
        expert_TK: Tensor,
        weight_TK: Tensor,
        *,
        logits_TE: Tensor,
        probs_TE: Tensor,
        partial: bool = False,
        load_TE: Tensor | None = None,
    ) -> Routing:
        """`Routing.from_choices`, with what the chosen null experts give."""
        partial = partial or self.null_experts is not None
        routing = Routing.from_choices(
            expert_TK, weight_TK, logits_TE=logits_TE, probs_TE=probs_TE, partial=partial, load_TE=load_TE
        )
        if self.null_experts is None:
            return routing
        bypass_TD = self.null_experts(x_TD, expert_TK - self.num_experts, weight_TK)
        return replace(routing, null_experts=self.null_experts.count, bypass_TD=bypass_TD)

    def forward(self, x_TD: Tensor) -> Routing:
        """Route the tokens: (T, D) -> Routing."""
        raise TypeError(f"{type(self).__name__} defines no forward(x_TD) -> Routing for {tuple(x_TD.shape)} tokens")

    def freeze(self) -> None:
        """Stop learning and choose as in evaluation, also in training: no noise, no counting; see `freeze_routing`."""
        if self.frozen is None:
            self.frozen = tuple(name for name, parameter in self.named_parameters() if parameter.requires_grad)
            self.requires_grad_(requires_grad=False)
            self.train(self.training)

    def unfreeze(self) -> None:
        """Undo `freeze`: what it froze learns again, and the router is in the mode that its model was put into."""
        for name in self.frozen or ():
            self.get_parameter(name).requires_grad_()
        if self.frozen is not None:
            self.frozen = None
            self.train(self._asked_mode)

    def train(self, mode: bool = True) -> Self:  # noqa: FBT001, FBT002  # torch's own
        """Switch to training mode, which a frozen router does not enter before it is unfrozen."""
        self._asked_mode = mode
        return super().train(mode and self.frozen is None)

    def observe(self, routing: Routing) -> None:
        """See what was routed: the layer calls it once per training forward, never again under recomputation.

        Change buffers in place, by methods as `add_` and `copy_`: an assignment inside a recomputed region, `+=` to an
        attribute included, breaks torch.compile's graph.
        """

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
