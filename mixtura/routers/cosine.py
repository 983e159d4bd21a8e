"""A gate that scores by angle: a module for any router's `gate`."""

import math

import torch
from torch import Tensor, nn

from mixtura.errors import UserError
from mixtura.routers.base import check_router


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
