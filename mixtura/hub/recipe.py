"""What a decoder is now: its config read off its modules, whatever surgery has changed since it was built."""

from dataclasses import replace
from typing import Any

from torch import nn

from mixtura.config import MoEConfig
from mixtura.dispatch import Capacity
from mixtura.errors import UserError
from mixtura.experts import MLP, GroupedMLP
from mixtura.layer import MoE
from mixtura.models.causal import Causal, CausalConfig
from mixtura.routers.base import Router
from mixtura.routers.sigmoid import SigmoidBias
from mixtura.routers.topk import Gate, TopK


def describe(model: Causal) -> CausalConfig:
    """The config that builds a model of the same shapes.

    Raises:
        UserError: feed-forward blocks that a checkpoint has no place for.

    Example:
        >>> config = CausalConfig.plain(vocab_size=10, context=16, layers=2, dim=8, heads=2, hidden=16)
        >>> describe(Causal(config)).moe is None
        True
    """
    blocks: list[Any] = [block.feed_forward for block in model.blocks]
    dense = [number for number, block in enumerate(blocks) if isinstance(block, MLP)]
    mixtures = {number: block for number, block in enumerate(blocks) if isinstance(block, MoE)}
    if len(dense) + len(mixtures) < len(blocks):
        odd = next(block for block in blocks if not isinstance(block, MLP | MoE))
        raise UserError(f"expected feed-forward blocks that are MLP or MoE, got {type(odd).__name__}")
    hidden = {blocks[number].down_proj.in_features for number in dense}
    recipes = [_recipe(layer) for layer in mixtures.values()]
    for found in (hidden, recipes):
        if any(value != next(iter(found)) for value in found):
            raise UserError(f"expected blocks of one size, as checkpoints have them, got {sorted(map(str, found))}")
    config = replace(model.config, layers=len(blocks), dense_blocks=tuple(dense), moe=None, router_bias=False)
    if not recipes:
        return replace(config, dense_blocks=(), hidden=hidden.pop())
    config = replace(config, moe=recipes[0], hidden=hidden.pop() if hidden else recipes[0].hidden)
    return replace(config, router_bias=next(iter(mixtures.values())).router.gate is not None)


def _recipe(layer: MoE) -> MoEConfig:
    experts, router = layer.experts, layer.router
    if not isinstance(experts, GroupedMLP):
        raise UserError(f"expected stacked experts (GroupedMLP), got {type(experts).__name__}")
    kind, options = _router(router)
    shared = layer.shared
    if shared is not None and not (isinstance(shared, MLP) and shared.activation == experts.activation):
        raise UserError(f"expected a shared MLP with the experts' activation, got {type(shared).__name__}")
    gate = layer.shared_gate
    return MoEConfig(
        dim=experts.dim,
        hidden=experts.hidden,
        num_experts=experts.num_experts,
        k=router.k,
        router=kind,
        router_options=options,
        activation=experts.activation,
        bias=experts.up_bias is not None,
        dropout=experts.dropout,
        shared_hidden=0 if shared is None else shared.down_proj.in_features,
        shared_gate=None if gate is None else ("sigmoid" if gate.out_features == 1 else "softmax"),
        capacity=None if layer.eval_capacity == Capacity() else layer.eval_capacity,
        losses=layer.losses,
    )


def _router(router: Router) -> tuple[str, dict[str, Any]]:
    if router.null_experts is not None or router.temperature is not None:
        raise UserError("expected a router without null experts and temperature, as checkpoints have it")
    if router.gate is not None and not (isinstance(router.gate, nn.Linear) and router.gate.bias is not None):
        raise UserError(
            f"expected a router that is a matrix, or nn.Linear with a bias, got {type(router.gate).__name__}"
        )
    if isinstance(router, SigmoidBias):
        options = {"groups": router.groups, "group_k": router.group_k}
        return "sigmoid_bias", {**options, "renormalize": router.renormalize, "scale": router.scale}
    if type(router) not in (TopK, Gate):
        raise UserError(f"expected a TopK or SigmoidBias router, got {type(router).__name__}")
    assert isinstance(router, TopK)
    # Renormalised, both orders give the same weights.
    over_all = router.order == "softmax_topk" and not router.renormalize
    return "topk", {"order": "softmax_topk"} if over_all else {}
