"""The two passes as sequences of launches; `start` runs them, or, with tensors on the meta device, lists them.

Forward: schedule, up (gather, activation and weight inside), down. Backward: schedule, hidden, dz W_up and its
gather-and-sum, two weight gradients, two bias gradients; what is not wanted is not computed.
"""

from collections.abc import Callable

from torch import Tensor

from mixtura.kernels.activations import ACTIVATIONS, StackedMLP
from mixtura.kernels.ops import Gradients, Wanted
from mixtura.kernels.rows import RowIndex
from mixtura.kernels.triton.combine import combine_launch
from mixtura.kernels.triton.configs import Tiles, choose
from mixtura.kernels.triton.hidden import hidden_launch
from mixtura.kernels.triton.launch import Launch
from mixtura.kernels.triton.rows import rows_launch
from mixtura.kernels.triton.schedule import Schedule, schedule_launch
from mixtura.kernels.triton.up import up_launch
from mixtura.kernels.triton.weights import sums_launch, weights_launch

Start = Callable[[Launch], None]


def _plan(x_TD: Tensor, index: RowIndex, down: Tensor, start: Start) -> tuple[Tiles, Schedule]:
    N = index.token_N.shape[0]
    tiles = choose(x_TD.dtype, sizes=down.shape[1:], rows_per_expert=N / index.num_experts)
    schedule, launch = schedule_launch(index.counts_E, num_rows=N, height=tiles.height)
    start(launch)
    return tiles, schedule


def forward(
    x_TD: Tensor,
    weight_N: Tensor,
    index: RowIndex,
    *,
    experts: StackedMLP,
    keep_NF: Tensor | None,
    keep_z: bool,
    start: Start = Launch.run,
) -> tuple[Tensor, Tensor]:
    """The weighted outputs (N, D), zeros in the tail, and the pre-activation z (N, *), (0, *) where it is not kept."""
    up, down, up_bias, down_bias, activation = experts
    D, F = down.shape[1:]
    tiles, schedule = _plan(x_TD, index, down, start)
    gated = ACTIVATIONS[activation].gated
    a_NF, z, launch = up_launch(
        x_TD,
        weight_N,
        up,
        token_N=index.token_N,
        bias=up_bias,
        activation=activation,
        keep_NF=keep_NF,
        keep_z=keep_z,
        schedule=schedule,
        config=tiles.config("up_gated" if gated else "up", F, D),
    )
    start(launch)
    config = tiles.config("rows", D, F)
    y_ND, launch = rows_launch(
        a_NF, down, transposed=True, weight_N=weight_N, bias=down_bias, schedule=schedule, config=config
    )
    start(launch)
    return y_ND, z


def backward(
    dy_ND: Tensor,
    x_TD: Tensor,
    weight_N: Tensor,
    *,
    index: RowIndex,
    experts: StackedMLP,
    keep_NF: Tensor | None,
    z: Tensor,
    wanted: Wanted,
    start: Start = Launch.run,
) -> Gradients:
    """The wanted gradients."""
    up, down, _, down_bias, _ = experts
    (D, F), columns = down.shape[1:], up.shape[1]
    tiles, schedule = _plan(x_TD, index, down, start)
    gated = ACTIVATIONS[experts.activation].gated
    hidden, launch = hidden_launch(
        dy_ND,
        weight_N,
        down,
        down_bias=down_bias,
        z=z,
        keep_NF=keep_NF,
        activation=experts.activation,
        schedule=schedule,
        config=tiles.config("hidden_gated" if gated else "hidden", F, D),
    )
    start(launch)
    dx_TD = dup = ddown = dup_bias = ddown_bias = None
    if wanted.x:
        config = tiles.config("rows", D, columns)
        dx_ND, launch = rows_launch(hidden.dz, up, transposed=False, schedule=schedule, config=config)
        start(launch)
        dx_TD, launch = combine_launch(dx_ND, index)
        start(launch)
    if wanted.up:
        config = tiles.config("weights", D, columns)
        dup, launch = weights_launch(hidden.dz, x_TD, token_N=index.token_N, schedule=schedule, config=config)
        start(launch)
    if wanted.down:
        config = tiles.config("weights", F, D)
        ddown, launch = weights_launch(dy_ND, hidden.a_NF, schedule=schedule, config=config)
        start(launch)
    if wanted.up_bias:
        dup_bias, launch = sums_launch(hidden.dz, weight_N=None, schedule=schedule)
        start(launch)
    if wanted.down_bias:
        ddown_bias, launch = sums_launch(dy_ND, weight_N=weight_N, schedule=schedule)
        start(launch)
    dweight_N = hidden.dweight_PN.sum(0).to(weight_N.dtype) if wanted.weight else None
    return Gradients(dx_TD, dweight_N, dup, ddown, dup_bias, ddown_bias)
