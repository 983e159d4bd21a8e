"""How the experts of a mixture are made from one dense MLP: the values that `moefy` takes as `init`.

What the experts add up to must not depend on the router's scale: the sum s of a token's weights is measured, and the
experts' outputs are divided by it. With weights that are renormalised over the chosen experts s = 1, and copies give
the dense output exactly.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor

from mixtura.errors import UserError
from mixtura.kernels.activations import ACTIVATIONS, StackedMLP
from mixtura.routers.base import Router
from mixtura.surgery.layers import scale_output, weight_sum


class Init(Protocol):
    """A way to make E experts from one MLP.

    Attributes:
        needs_inputs: whether it looks at what the MLP is given, so that `moefy` must run the model.

    Example:
        >>> init: Init = Upcycle()
    """

    @property
    def needs_inputs(self) -> bool:
        """Whether the MLP's inputs must be known."""
        ...

    def experts(self, mlp: StackedMLP, router: Router, *, inputs_TD: Tensor | None) -> StackedMLP:
        """The stack of E experts; the router's own weights are changed where they belong together."""
        ...


@dataclass(frozen=True)
class Upcycle:
    """E copies: the dense output, exactly, where the router's weights have one sum for all tokens.

    Source: Komatsuzaki et al. 2023 (Sparse upcycling).

    Example:
        >>> Upcycle()
        Upcycle()
    """

    needs_inputs: ClassVar[bool] = False

    def experts(self, mlp: StackedMLP, router: Router, *, inputs_TD: Tensor | None) -> StackedMLP:
        """E copies, their outputs over the sum of the router's weights."""
        del inputs_TD
        return scale_output(take(mlp, torch.zeros(router.num_experts, dtype=torch.long)), 1 / weight_sum(router))


@dataclass(frozen=True)
class Noise(Upcycle):
    """Copies with normal noise, so that experts differ before their routers do.

    Attributes:
        std: of the noise, as a share of each matrix's own standard deviation.

    Example:
        >>> Noise(std=0.05).std
        0.05
    """

    std: float = 0.01

    def experts(self, mlp: StackedMLP, router: Router, *, inputs_TD: Tensor | None) -> StackedMLP:
        """E noisy copies."""
        stack = Upcycle.experts(self, mlp, router, inputs_TD=inputs_TD)
        return map_weights(stack, lambda w: w + self.std * w.std(dim=(1, 2), keepdim=True) * torch.randn_like(w))


@dataclass(frozen=True)
class Drop(Upcycle):
    """Copies of which some hidden units, others in each expert, are drawn again from N(mean, std) of each matrix.

    Source: Nakamura et al. 2025 (Drop-upcycling), section 3.1.

    Attributes:
        ratio: share of the hidden units that are drawn again.

    Raises:
        UserError: a ratio outside [0, 1].

    Example:
        >>> Drop(ratio=0.25).ratio
        0.25
    """

    ratio: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.ratio <= 1:
            raise UserError(f"expected a ratio from 0 to 1, got {self.ratio}")

    def experts(self, mlp: StackedMLP, router: Router, *, inputs_TD: Tensor | None) -> StackedMLP:
        """E copies, each with fresh units of its own."""
        stack = Upcycle.experts(self, mlp, router, inputs_TD=inputs_TD)
        E, _, F = stack.down.shape
        order_EF = torch.rand(E, F, device=stack.down.device).argsort(dim=1).argsort(dim=1)
        is_fresh_EF = order_EF < round(self.ratio * F)
        rows = is_fresh_EF.repeat(1, stack.up.shape[1] // F).unsqueeze(2)  # of the gate too
        return stack._replace(
            up=torch.where(rows, _redrawn_by_half(stack), stack.up),
            down=torch.where(is_fresh_EF.unsqueeze(1), _redrawn(stack.down), stack.down),
            up_bias=None if stack.up_bias is None else stack.up_bias.masked_fill(rows.squeeze(2), 0),
        )


def _redrawn(weight: Tensor) -> Tensor:
    return weight.mean(dim=(1, 2), keepdim=True) + weight.std(dim=(1, 2), keepdim=True) * torch.randn_like(weight)


def _redrawn_by_half(stack: StackedMLP) -> Tensor:
    """The gate's half and the other have a mean and a deviation of their own."""
    return torch.cat([_redrawn(half) for half in stack.up.chunk(1 + ACTIVATIONS[stack.activation].gated, dim=1)], dim=1)


@dataclass(frozen=True)
class Split:
    """Fine-grained: the hidden units are cut into `parts` slices, and the slices copied until there are E experts.

    Experts r*G to r*G + G - 1 are the G slices of copy r and share one row of the router, so that they are chosen
    together: with k a multiple of G the output is the dense one, exactly, since the slices' outputs are multiplied by
    G over the sum of the router's weights.

    Source: He et al. 2024 (Upcycling large language models into mixture of experts), section 3; there all matrices
    share the factor (`scale="all"`), which keeps the output only where the activation is homogeneous.

    Attributes:
        parts: G; None: one for each choice of the router, G = k.
        scale: "down": the whole factor on the second matrix; "all": its square root on each matrix, with a gated
            activation its cube root on each of the three.

    Raises:
        UserError: `parts` that does not divide F, E or k.

    Example:
        >>> Split(parts=4).scale
        'down'
    """

    parts: int | None = None
    scale: Literal["down", "all"] = "down"
    needs_inputs: ClassVar[bool] = False

    def experts(self, mlp: StackedMLP, router: Router, *, inputs_TD: Tensor | None) -> StackedMLP:
        """E / G copies of the G slices, expert by expert."""
        del inputs_TD
        G, E, F = self.parts or router.k, router.num_experts, mlp.down.shape[2]
        if F % G or E % G or router.k % G:
            raise UserError(
                f"expected parts that divide the hidden width {F}, num_experts={E} and k={router.k}, got {G}"
            )
        share_router_rows(router, G)
        slices = cut(mlp, torch.arange(F, device=mlp.down.device).view(G, F // G))
        stack = take(slices, torch.arange(E) % G)
        factor = G / weight_sum(router)
        if self.scale == "down":
            return scale_output(stack, factor)
        root = factor ** (1 / (2 + ACTIVATIONS[mlp.activation].gated))
        stack = stack._replace(up=stack.up * root, down=stack.down * root)
        if stack.up_bias is not None and stack.down_bias is not None:
            stack = stack._replace(up_bias=stack.up_bias * root, down_bias=stack.down_bias * factor)
        return stack


@dataclass(frozen=True)
class Random:
    """Experts drawn afresh, as `GroupedMLP` draws them.

    Example:
        >>> Random()
        Random()
    """

    needs_inputs: ClassVar[bool] = False

    def experts(self, mlp: StackedMLP, router: Router, *, inputs_TD: Tensor | None) -> StackedMLP:
        """E times the sizes of the MLP, with other values."""
        del inputs_TD
        return self.drawn(take(mlp, torch.zeros(router.num_experts, dtype=torch.long)))

    @staticmethod
    def drawn(stack: StackedMLP) -> StackedMLP:
        """The same sizes with other values."""
        D, F = stack.down.shape[1:]
        fan_in = {"up": D, "up_bias": D, "down": F, "down_bias": F}
        return map_tensors(
            stack, lambda name, w: torch.empty_like(w).uniform_(-(fan_in[name] ** -0.5), fan_in[name] ** -0.5)
        )


def take(stack: StackedMLP, index_E: Tensor) -> StackedMLP:
    """The experts of these numbers, in this order, repeated or left out.

    Example:
        >>> up = torch.arange(3.0).view(3, 1, 1)
        >>> take(StackedMLP(up=up, down=up, activation="relu"), torch.tensor([2, 0])).up.flatten().tolist()
        [2.0, 0.0]
    """
    index_E = index_E.to(stack.down.device)
    return map_tensors(stack, lambda _, tensor: tensor[index_E])


def map_tensors(stack: StackedMLP, change: Callable[[str, Tensor], Tensor]) -> StackedMLP:
    """Every tensor that a stack has changed, knowing its name: "up", "down", "up_bias" or "down_bias".

    Example:
        >>> one = torch.ones(1, 1, 1)
        >>> map_tensors(StackedMLP(up=one, down=one), lambda name, tensor: tensor * len(name)).down.item()
        4.0
    """
    changed = [
        None if tensor is None else change(name, tensor)
        for name, tensor in zip(StackedMLP._fields, stack[:4], strict=False)
    ]
    assert changed[0] is not None
    assert changed[1] is not None
    return StackedMLP(changed[0], changed[1], changed[2], changed[3], stack.activation)


def map_weights(stack: StackedMLP, change: Callable[[Tensor], Tensor]) -> StackedMLP:
    """Both matrices changed, biases left.

    Example:
        >>> one = torch.ones(1, 1, 1)
        >>> map_weights(StackedMLP(up=one, down=one), lambda w: w + 1).down.item()
        2.0
    """
    return stack._replace(up=change(stack.up), down=change(stack.down))


def cut(mlp: StackedMLP, units_EF: Tensor) -> StackedMLP:
    """Experts that are groups of one MLP's hidden units, which add up to it: its second bias is shared out evenly.

    Args:
        mlp: a stack of one.
        units_EF: int64 (E, F of each expert), numbers of hidden units.

    Example:
        >>> up = torch.arange(4.0).view(1, 4, 1)
        >>> mlp = StackedMLP(up=up, down=up.transpose(1, 2), activation="relu")
        >>> cut(mlp, torch.tensor([[0, 3], [1, 2]])).up.squeeze(-1).tolist()
        [[0.0, 3.0], [1.0, 2.0]]
    """
    E, F = units_EF.shape[0], mlp.down.shape[2]
    rows = torch.cat([units_EF, units_EF + F], dim=1) if ACTIVATIONS[mlp.activation].gated else units_EF
    return mlp._replace(
        up=mlp.up[0][rows],
        down=mlp.down[0][:, units_EF].transpose(0, 1),
        up_bias=None if mlp.up_bias is None else mlp.up_bias[0][rows],
        down_bias=None if mlp.down_bias is None else mlp.down_bias.expand(E, -1) / E,
    )


@torch.no_grad()
def share_router_rows(router: Router, parts: int) -> None:
    """Give each `parts` experts in a row one row of the router's matrix: that of the first of them.

    Raises:
        UserError: a router without a matrix.

    Example:
        >>> import mixtura as mx
        >>> router = mx.routers.TopK(4, 4)
        >>> share_router_rows(router, 2); torch.equal(router.weight[0], router.weight[1])
        True
    """
    if router.weight is None or router.weight.shape[0] != router.num_experts:
        raise UserError(f"expected a router with one row of a matrix for each expert, got {type(router).__name__}")
    router.weight.copy_(router.weight[::parts].repeat_interleave(parts, dim=0))
