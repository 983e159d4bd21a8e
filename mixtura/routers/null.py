"""Null experts (MoE++): routes that cost next to nothing, so that an easy token need not occupy an expert."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mixtura.errors import UserError

KINDS = ("zero", "copy", "constant")


class NullExperts(nn.Module):
    """What a router's null experts add to the output, weighted: nothing, the token itself, or a learned mix.

    In the order of their logits: "zero" gives 0; "copy" gives x; "constant" gives a_1 x + a_2 v with a learned vector v
    and (a_1, a_2) = softmax(W_c x) (each its own v and W_c).

    Source: Jin et al. 2024 (MoE++), equations 3 to 5. The paper uses one zero, one copy and E/4 - 2, at least one,
    constant experts.

    Args:
        dim: D.
        counts: kind -> how many.

    Attributes:
        count: J, all of them.

    Shapes:
        vector: (J_constant, D). mix: (2, J_constant, D).

    Raises:
        UserError: an unknown kind, a negative number.

    Example:
        >>> null_experts = NullExperts(2, {"zero": 1, "copy": 1})
        >>> null_TK, weight_TK = torch.tensor([[1, 0], [-3, 0]]), torch.tensor([[0.5, 0.25], [0.5, 0.25]])
        >>> null_experts(torch.tensor([[2.0, 4.0], [2.0, 4.0]]), null_TK, weight_TK).tolist()
        [[1.0, 2.0], [0.0, 0.0]]
    """

    def __init__(self, dim: int, counts: Mapping[str, int]) -> None:
        super().__init__()
        unknown = sorted(set(counts) - set(KINDS))
        if unknown:
            raise UserError(f"expected null_experts among {', '.join(KINDS)}, got {', '.join(unknown)}")
        for kind, count in counts.items():
            if count < 0:
                raise UserError(f"expected null_experts with at least 0 of kind {kind!r}, got {count}")
        self.zero, self.copy, self.constant = (counts.get(kind, 0) for kind in KINDS)
        self.count, self.dim = sum(counts.values()), dim
        self.vector = nn.Parameter(torch.empty(self.constant, dim)) if self.constant else None
        self.mix = nn.Parameter(torch.empty(2, self.constant, dim)) if self.constant else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the vectors as embeddings and the mixing weights small, so that each starts near (x + v) / 2."""
        if self.vector is not None and self.mix is not None:
            nn.init.normal_(self.vector, std=0.02)
            nn.init.normal_(self.mix, std=0.1 * self.dim**-0.5)

    def forward(self, x_TD: Tensor, null_TK: Tensor, weight_TK: Tensor) -> Tensor:
        """The weighted sum of what each token chose: float32 (T, D).

        Args:
            x_TD: the tokens.
            null_TK: int64, the null expert of each choice, from 0; a negative number is a choice of another kind.
            weight_TK: float32, the weights.
        """
        with torch.autocast(x_TD.device.type, enabled=False):
            dtype = weight_TK.dtype  # the router's: at least fp32
            x_TD = x_TD.to(dtype)
            weight_TJ = weight_TK.new_zeros(x_TD.shape[0], self.count + 1)
            weight_TJ = weight_TJ.scatter_add(1, null_TK.where(null_TK >= 0, self.count), weight_TK)
            _, copy_TJ, constant_TJ, _ = weight_TJ.split([self.zero, self.copy, self.constant, 1], dim=1)
            share_T = copy_TJ.sum(1, keepdim=True)
            if self.vector is None or self.mix is None:
                copied_TD: Tensor = share_T * x_TD
                return copied_TD
            mix_2TJ = torch.einsum("td,ajd->atj", x_TD, self.mix.to(dtype)).softmax(0)
            share_T = share_T + (constant_TJ * mix_2TJ[0]).sum(1, keepdim=True)
            y_TD: Tensor = share_T * x_TD + (constant_TJ * mix_2TJ[1]) @ self.vector.to(dtype)
            return y_TD

    def extra_repr(self) -> str:
        """How many of each kind, for print(model)."""
        return ", ".join(f"{kind}={getattr(self, kind)}" for kind in KINDS)
