"""The mixtures of a model, and what all surgery needs of them: their stacks, and the sum of their routers' weights."""

import warnings

import torch
from torch import Tensor, nn

from mixtura.errors import UserError
from mixtura.experts import GroupedMLP
from mixtura.kernels.activations import StackedMLP
from mixtura.layer import MoE
from mixtura.routers.base import Router
from mixtura.routing import SlotRouting

_PROBES = 64


def mixtures(model: nn.Module) -> dict[str, MoE]:
    """Every mixture of a model whose experts are a `GroupedMLP`, by name.

    Raises:
        UserError: there is none.

    Example:
        >>> import mixtura as mx
        >>> list(mixtures(nn.Sequential(mx.MoEConfig(dim=4, hidden=8, num_experts=2).build())))
        ['0']
    """
    found = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, MoE) and isinstance(module.experts, GroupedMLP)
    }
    if not found:
        raise UserError(f"expected a model with mixtures of GroupedMLP experts, got a {type(model).__name__} without")
    return found


def grouped(layer: MoE) -> GroupedMLP:
    """A mixture's experts, which must be stacked.

    Raises:
        UserError: they are of another kind.

    Example:
        >>> import mixtura as mx
        >>> grouped(mx.MoEConfig(dim=4, hidden=8, num_experts=2).build()).hidden
        8
    """
    if not isinstance(layer.experts, GroupedMLP):
        raise UserError(f"expected experts of kind GroupedMLP, got {type(layer.experts).__name__}")
    return layer.experts


def stack_of(experts: GroupedMLP) -> StackedMLP:
    """The experts' weights without their graph, not copied.

    Example:
        >>> stack_of(GroupedMLP(num_experts=2, dim=4, hidden=8, activation="relu")).up.shape
        torch.Size([2, 8, 4])
    """
    parts = (experts.up_proj, experts.down_proj, experts.up_bias, experts.down_bias)
    up, down, up_bias, down_bias = (None if part is None else part.detach() for part in parts)
    assert up is not None
    assert down is not None
    return StackedMLP(up, down, up_bias, down_bias, experts.activation)


def experts_of(stack: StackedMLP, *, dropout: float = 0.0) -> GroupedMLP:
    """A module of these weights, copied, on their device and in their dtype.

    Example:
        >>> one = torch.ones(3, 2, 2)
        >>> experts_of(StackedMLP(up=one, down=one, activation="relu")).num_experts
        3
    """
    num_experts, dim, hidden = stack.down.shape
    with torch.device("meta"):  # no random numbers are drawn for weights that are overwritten
        experts = GroupedMLP(
            num_experts=num_experts,
            dim=dim,
            hidden=hidden,
            activation=stack.activation,
            bias=stack.up_bias is not None,
            dropout=dropout,
        )
    for name, tensor in zip(("up_proj", "down_proj", "up_bias", "down_bias"), stack, strict=False):
        if isinstance(tensor, Tensor):
            setattr(experts, name, nn.Parameter(tensor.detach().clone(memory_format=torch.contiguous_format)))
    return experts


def scale_output(stack: StackedMLP, factor: float) -> StackedMLP:
    """The experts with their outputs multiplied, by the second matrix and its bias: exact whatever the activation.

    Example:
        >>> one = torch.ones(1, 1, 1)
        >>> scale_output(StackedMLP(up=one, down=one, activation="relu"), 2.0).down.item()
        2.0
    """
    bias = None if stack.down_bias is None else stack.down_bias * factor
    return stack._replace(down=stack.down * factor, down_bias=bias)


@torch.no_grad()
def weight_sums(router: Router, x_TD: Tensor | None = None) -> Tensor:
    """What a router's weights add up to, for each token, in evaluation: (T,).

    Args:
        router: any that weights experts.
        x_TD: the tokens; None: some random ones.

    Raises:
        UserError: a router that adds something of its own to the output, or mixes tokens into slots.

    Example:
        >>> import mixtura as mx
        >>> torch.allclose(weight_sums(mx.routers.TopK(8, 4)), torch.ones(64))
        True
    """
    was_training, reference = router.training, next(router.parameters(), torch.zeros(()))
    x_TD = (torch.randn(_PROBES, router.dim) if x_TD is None else x_TD).to(reference)
    context = {"context_T": torch.zeros_like(x_TD[:, 0], dtype=torch.long)} if router.needs_context else {}
    router.eval()
    routing = router(x_TD, **context)
    router.train(was_training)
    if isinstance(routing, SlotRouting) or routing.bypass_TD is not None:
        raise UserError(
            f"expected a router that only weights experts, got {type(router).__name__}; take init='random' with it"
        )
    weight_N = routing.weight_N.masked_fill(routing.expert_N < 0, 0)
    sums_T: Tensor = weight_N.new_zeros(x_TD.shape[0]).index_add_(0, routing.token_N, weight_N)
    return sums_T


def weight_sum(router: Router) -> float:
    """The sum of a router's weights where it is the same for all tokens; else its mean, with a warning.

    Warns:
        UserWarning: the sums differ, so that no scale of the experts can undo them for every token.

    Example:
        >>> import mixtura as mx
        >>> round(weight_sum(mx.routers.SigmoidBias(8, 4, 2, scale=2.5)), 4)
        2.5
    """
    sums_T = weight_sums(router)
    mean = float(sums_T.mean())
    if float(sums_T.max() - sums_T.min()) > 1e-4 * mean:
        warnings.warn(
            f"the weights of {type(router).__name__} add up to {float(sums_T.min()):.4g} for one token and to "
            f"{float(sums_T.max()):.4g} for another, so the mixture equals the dense model on average only; for "
            "equality take a router that renormalises: topk with its default order",
            stacklevel=2,
        )
    return mean
