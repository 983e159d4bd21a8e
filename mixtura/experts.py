"""Experts: `Rows -> y_ND`, one weighted output row per assignment."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from mixtura import kernels
from mixtura.errors import UserError
from mixtura.hooks import outside_graph
from mixtura.routing import Rows


def _check_mlp(*, activation: str, **sizes: int) -> None:
    """Refuse sizes below 1 and unknown activations.

    Raises:
        UserError: names the argument.

    Example:
        >>> _check_mlp(activation="relu", hidden=0)
        Traceback (most recent call last):
        ...
        mixtura.errors.UserError: expected hidden of at least 1, got 0
    """
    for name, value in sizes.items():
        if value < 1:
            raise UserError(f"expected {name} of at least 1, got {value}")
    if activation not in kernels.ACTIVATIONS:
        raise UserError(f"expected an activation among {sorted(kernels.ACTIVATIONS)}, got {activation!r}")


class GroupedMLP(nn.Module):
    """E two-layer MLPs with stacked weights, computed together: y = act(x W_up^T + b_up) W_down^T + b_down.

    Args:
        num_experts: E.
        dim: D, width in and out.
        hidden: F, hidden width of each expert.
        activation: "relu", "gelu", "gelu_tanh" (its usual approximation), "silu", or gated: "swiglu" (Shazeer 2020),
            "geglu", "geglu_tanh", "clamped_swiglu" (gpt-oss).
        bias: add biases to both products.
        dropout: in training, the share of hidden units set to 0 in each row; the others are scaled up (the expert
            dropout of Fedus et al. 2021, section 2.4).

    Shapes:
        up_proj: (E, F, D); gated: (E, 2F, D), the gate's rows first.
        down_proj: (E, D, F).
        up_bias, down_bias: (E, F or 2F), (E, D).

    Raises:
        UserError: a size below 1, an unknown activation, a dropout outside [0, 1).

    Example:
        >>> GroupedMLP(num_experts=4, dim=8, hidden=16, activation="swiglu").up_proj.shape
        torch.Size([4, 32, 8])
    """

    def __init__(
        self,
        *,
        num_experts: int,
        dim: int,
        hidden: int,
        activation: str = "swiglu",
        bias: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        _check_mlp(num_experts=num_experts, dim=dim, hidden=hidden, activation=activation)
        if not 0 <= dropout < 1:
            raise UserError(f"expected 0 <= dropout < 1, got {dropout}")
        self.dropout = dropout
        self.num_experts, self.dim, self.hidden, self.activation = num_experts, dim, hidden, activation
        columns = 2 * hidden if kernels.ACTIVATIONS[activation].gated else hidden
        self.up_proj = nn.Parameter(torch.empty(num_experts, columns, dim))
        self.down_proj = nn.Parameter(torch.empty(num_experts, dim, hidden))
        self.up_bias = nn.Parameter(torch.empty(num_experts, columns)) if bias else None
        self.down_bias = nn.Parameter(torch.empty(num_experts, dim)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw each expert's weights as `nn.Linear` does: U(-1, 1) / sqrt(fan_in)."""
        for parameter, fan_in in (
            (self.up_proj, self.dim),
            (self.up_bias, self.dim),
            (self.down_proj, self.hidden),
            (self.down_bias, self.hidden),
        ):
            if parameter is not None:
                nn.init.uniform_(parameter, -(fan_in**-0.5), fan_in**-0.5)

    def forward(self, rows: Rows) -> Tensor:
        """Run each expert on its rows: Rows -> (N, D), weighted. Under autocast in the autocast dtype."""
        x_TD = rows.x_TD
        device = x_TD.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x_TD.dtype
        experts = kernels.StackedMLP(
            up=self.up_proj.to(dtype),
            down=self.down_proj.to(dtype),
            up_bias=None if self.up_bias is None else self.up_bias.to(dtype),
            down_bias=None if self.down_bias is None else self.down_bias.to(dtype),
            activation=self.activation,
        )
        keep_NF = None
        if self.dropout and self.training:
            shape = (rows.weight_N.shape[0], self.hidden)
            keep_NF = torch.empty(shape, dtype=dtype, device=x_TD.device).bernoulli_(1 - self.dropout)
            keep_NF /= 1 - self.dropout
        return kernels.grouped_mlp(x_TD.to(dtype), rows.weight_N, rows.index, experts=experts, keep_NF=keep_NF)

    def extra_repr(self) -> str:
        """Sizes, for print(model)."""
        bias = self.up_bias is not None
        return (
            f"num_experts={self.num_experts}, dim={self.dim}, hidden={self.hidden}, "
            f"activation={self.activation}, bias={bias}" + (f", dropout={self.dropout}" if self.dropout else "")
        )


class MLP(nn.Module):
    """One dense MLP with the activations of `GroupedMLP`: a shared expert, or the dense twin of a mixture.

    Args:
        dim: D, width in and out.
        hidden: F.
        activation: see `GroupedMLP`.
        bias: see `GroupedMLP`.

    Shapes:
        up_proj.weight: (F, D); gated: (2F, D), the gate's rows first. down_proj.weight: (D, F).

    Example:
        >>> MLP(dim=8, hidden=16, activation="geglu")(torch.zeros(3, 8)).shape
        torch.Size([3, 8])
    """

    def __init__(self, *, dim: int, hidden: int, activation: str = "swiglu", bias: bool = False) -> None:
        super().__init__()
        _check_mlp(dim=dim, hidden=hidden, activation=activation)
        self.activation = activation
        self.up_proj = nn.Linear(dim, 2 * hidden if kernels.ACTIVATIONS[activation].gated else hidden, bias=bias)
        self.down_proj = nn.Linear(hidden, dim, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        y: Tensor = self.down_proj(kernels.ACTIVATIONS[self.activation].forward(self.up_proj(x)))
        return y


class ModuleExperts(nn.ModuleList):
    """Any modules as experts, different from one another if wished; each gets its rows as one batch.

    Linear, convolutional, recurrent, Transformer blocks, frozen and pre-trained ones: whatever maps (n_e, *row_shape)
    to (n_e, ...), all to one width. An expert without rows is not called: its parameters get no gradient in that step.
    Under torch.compile the experts run outside the graph, which breaks here: their numbers of rows change every time.

    Args:
        modules: the experts.
        row_shape: the shape of one token where it is no vector: (C, H, W) for images, (L, D) for sequences. The layer's
            input is then (..., *row_shape), and the router sees the token flattened.

    Raises:
        UserError: no expert given; in `forward`, experts that give rows of different widths, or another number of rows.

    Example:
        >>> import mixtura as mx
        >>> experts = ModuleExperts([nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))])
        >>> mx.MoE(router=mx.routers.TopK(4, num_experts=2, k=2), experts=experts)(torch.zeros(3, 4)).shape
        torch.Size([3, 4])
    """

    def __init__(self, modules: Iterable[nn.Module], *, row_shape: tuple[int, ...] | None = None) -> None:
        super().__init__(modules)
        if len(self) == 0:
            raise UserError("expected at least one expert, got none")
        self.row_shape = None if row_shape is None else tuple(row_shape)

    @property
    def num_experts(self) -> int:
        """E."""
        return len(self)

    def forward(self, rows: Rows) -> Tensor:
        """Run each expert on its rows: Rows -> (N, D_out), weighted."""
        y_ND: Tensor = outside_graph(ModuleExperts._run_each, self, rows)
        return y_ND

    def _run_each(self, rows: Rows) -> Tensor:
        x_ND = rows.gather()
        *parts, tail = x_ND.split(rows.index.parts())
        outputs = [self._run(e, x) for e, x in enumerate(parts) if x.shape[0]]
        if not outputs:
            return x_ND.masked_fill(torch.ones_like(x_ND, dtype=torch.bool), 0)
        widths = sorted({y.shape[1] for y in outputs})
        if len(widths) > 1:
            raise UserError(f"expected experts that all give rows of one width, got widths {widths}")
        return rows.scale(torch.cat([*outputs, outputs[0].new_zeros(tail.shape[0], widths[0])]))

    def _run(self, e: int, x: Tensor) -> Tensor:
        y: Tensor = self[e](x if self.row_shape is None else x.unflatten(1, self.row_shape))
        if y.shape[0] != x.shape[0]:
            raise UserError(f"expected one output row per input row, {x.shape[0]}, of expert {e}, got {tuple(y.shape)}")
        return y.flatten(1)
