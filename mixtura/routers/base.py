"""The router's contract: `x_TD -> Routing`, computed in fp32 whatever the layer's dtype."""

import warnings

import torch
from torch import Tensor, nn

from mixtura.errors import UserError
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


class Router(nn.Module):
    """Base of routers that score tokens with one matrix. A subclass implements `forward(x_TD) -> Routing`.

    Args:
        dim: D, width of the tokens.
        num_experts: E.
        k: K, experts per token.
        jitter: in training the input is multiplied by U[1 - jitter, 1 + jitter] (Fedus et al. 2021, section 2.2).
        init_std: standard deviation of the initial weights; None: 0.1 / sqrt(D), which keeps the first routing close to
            uniform.

    Shapes:
        weight: (E, D).

    Raises:
        UserError: see `check_router`; a jitter outside [0, 1).

    Example:
        >>> Router(8, num_experts=2).logits(torch.zeros(3, 8)).shape
        torch.Size([3, 2])
    """

    def __init__(
        self, dim: int, num_experts: int, k: int = 1, *, jitter: float = 0.0, init_std: float | None = None
    ) -> None:
        super().__init__()
        check_router(dim=dim, num_experts=num_experts, k=k)
        if not 0 <= jitter < 1:
            raise UserError(f"expected 0 <= jitter < 1, got {jitter}")
        self.dim, self.num_experts, self.k, self.jitter = dim, num_experts, k, jitter
        self.init_std = 0.1 * dim**-0.5 if init_std is None else init_std
        self.weight = nn.Parameter(torch.empty(num_experts, dim))
        # Not self.reset_parameters(): a subclass's own tensors do not exist yet.
        Router.reset_parameters(self)

    def reset_parameters(self) -> None:
        """Set every parameter and buffer afresh, as after `to_empty`; a subclass with more of them extends this."""
        nn.init.normal_(self.weight, std=self.init_std)

    def logits(self, x_TD: Tensor) -> Tensor:
        """x W^T in fp32, with jitter in training: (T, E)."""
        with torch.autocast(x_TD.device.type, enabled=False):
            x_TD = x_TD.float()
            if self.jitter and self.training:
                x_TD = x_TD * torch.empty_like(x_TD).uniform_(1 - self.jitter, 1 + self.jitter)
            return nn.functional.linear(x_TD, self.weight.float())

    def forward(self, x_TD: Tensor) -> Routing:
        """Route the tokens: (T, D) -> Routing."""
        raise TypeError(f"{type(self).__name__} defines no forward(x_TD) -> Routing for {tuple(x_TD.shape)} tokens")

    def observe(self, routing: Routing) -> None:
        """See what was routed: the layer calls it once per training forward, never again under recomputation."""

    def extra_repr(self) -> str:
        """Sizes, for print(model)."""
        return f"dim={self.dim}, num_experts={self.num_experts}, k={self.k}"
