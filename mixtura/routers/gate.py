"""Gates of one's own: any module that gives logits, and the cosine gate as one of them."""

import math
from typing import Unpack

import torch
from torch import Tensor, nn

from mixtura.errors import UserError
from mixtura.routers.base import GateOptions, check_router
from mixtura.routers.topk import Order, TopK
from mixtura.routing import Routing


class Gate(TopK):
    """`TopK` over the logits of any module (T, D) -> (T, E): an MLP with dropout, a cosine gate, a gate per task.

    Every other router takes such a module too, as its argument `gate`.

    Args:
        module: the gate. With `needs_context` it is called as `module(x_TD, context_T)`.
        dim: D.
        num_experts: E.
        k: K.
        order: see `TopK`.
        renormalize: see `TopK`.
        needs_context: hand the gate what `MoE.forward` was given as `context`, a task number for instance.
        options: see `Router`.

    Raises:
        UserError: see `TopK`; in `forward`, logits of another shape than (T, E).

    Example:
        >>> mlp = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 4))
        >>> Gate(mlp, dim=8, num_experts=4, k=2)(torch.randn(3, 8)).choices
        2
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        dim: int,
        num_experts: int,
        k: int = 2,
        order: Order = "topk_softmax",
        renormalize: bool = False,
        needs_context: bool = False,
        **options: Unpack[GateOptions],
    ) -> None:
        options["gate"] = module
        super().__init__(dim, num_experts, k, order=order, renormalize=renormalize, **options)
        self.needs_context = needs_context

    def forward(self, x_TD: Tensor, *, context_T: Tensor | None = None) -> Routing:
        """Route the tokens: (T, D) -> Routing with K choices each."""
        context = () if context_T is None else (context_T,)
        return self._choose(x_TD, self.clean_logits(x_TD, *context))


class CosineGate(nn.Module):
    """Logits by angle: cos(W x, v_e) / tau, with a learned temperature tau, a small W and one vector v per expert.

    Length carries no score, which keeps tokens from collapsing onto the experts' vectors. Source: Chi et al. 2022
    (X-MoE), section 3; Li et al. 2023 (GMoE) use it for domain generalisation.

    Args:
        dim: D.
        num_experts: E.
        width: of the space in which angles are taken; None: E / 2 as in the paper, at least 2.
        temperature: tau at the start; it is learned as its logarithm, so that it stays positive.

    Shapes:
        down.weight: (width, D). vectors: (E, width). log_temperature: scalar.

    Raises:
        UserError: a size below 1, a temperature that is not positive.

    Example:
        >>> CosineGate(8, 4)(torch.randn(3, 8)).shape
        torch.Size([3, 4])
    """

    def __init__(self, dim: int, num_experts: int, *, width: int | None = None, temperature: float = 0.3) -> None:
        super().__init__()
        width = max(num_experts // 2, 2) if width is None else width
        check_router(dim=dim, num_experts=num_experts, k=1)
        if width < 1:
            raise UserError(f"expected width of at least 1, got {width}")
        if not temperature > 0:
            raise UserError(f"expected a temperature above 0, got {temperature}")
        self.temperature = temperature
        self.down = nn.Linear(dim, width, bias=False)
        self.vectors = nn.Parameter(torch.empty(num_experts, width))
        self.log_temperature = nn.Parameter(torch.empty(()))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the vectors in uniform directions, and set the temperature back."""
        nn.init.normal_(self.vectors)
        nn.init.constant_(self.log_temperature, math.log(self.temperature))

    def forward(self, x_TD: Tensor) -> Tensor:
        """(T, D) -> logits (T, E)."""
        h_TW = nn.functional.normalize(self.down(x_TD), dim=-1)
        v_EW = nn.functional.normalize(self.vectors, dim=-1)
        return h_TW @ v_EW.T / self.log_temperature.exp()
