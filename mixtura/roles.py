"""What each parameter of a model is for, and what follows: groups for an optimizer, and who learns at all.

Two questions, since they decide two things: the `Part` a parameter belongs to has a learning rate of its own, its
`Kind` says whether it is decayed.

Example:
    >>> import mixtura as mx
    >>> layer = mx.MoEConfig(dim=4, hidden=8, num_experts=2, bias=True).build()
    >>> {name: role for (name, _), role in zip(layer.named_parameters(), roles(layer).values())}["experts.up_bias"]
    Role(part='experts', kind='vector')
"""

from collections import defaultdict
from collections.abc import Collection, Iterable
from typing import Any, Literal, NamedTuple, get_args

from torch import nn

from mixtura.errors import UserError
from mixtura.layer import MoE
from mixtura.routers.base import Router

Part = Literal["routers", "experts", "shared", "rest"]
Kind = Literal["matrix", "embedding", "vector"]

_NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase)


class Role(NamedTuple):
    """What one parameter is for.

    Attributes:
        part: "routers", "experts", "shared" (shared experts and their gate), or "rest".
        kind: "embedding", "vector" (norms, biases, scales), or "matrix": all others.

    Example:
        >>> Role("routers", "matrix").part
        'routers'
    """

    part: Part
    kind: Kind


def roles(model: nn.Module) -> dict[nn.Parameter, Role]:
    """The role of every parameter, each once, in the model's order.

    A router inside an expert is a router; a tied weight is an embedding if one of its places is.

    Example:
        >>> list(roles(nn.Linear(2, 3)).values())
        [Role(part='rest', kind='matrix'), Role(part='rest', kind='vector')]
    """
    layers = [module for module in model.modules() if isinstance(module, MoE)]
    routers = _parameters(module for module in model.modules() if isinstance(module, Router))
    experts = _parameters(layer.experts for layer in layers)
    shared = _parameters(part for layer in layers for part in (layer.shared, layer.shared_gate) if part is not None)
    embeddings = _parameters(module for module in model.modules() if isinstance(module, nn.Embedding))
    norms = _parameters(module for module in model.modules() if isinstance(module, _NORMS))

    found = {}
    for name, parameter in model.named_parameters():
        part: Part = "rest"
        if parameter in routers:
            part = "routers"
        elif parameter in experts:
            part = "experts"
        elif parameter in shared:
            part = "shared"
        kind: Kind = "matrix"
        if parameter in embeddings:
            kind = "embedding"
        elif parameter.ndim < 2 or parameter in norms or name.endswith("bias"):  # stacked experts' biases are (E, F)
            kind = "vector"
        found[parameter] = Role(part, kind)
    return found


def _parameters(modules: Iterable[nn.Module]) -> set[nn.Parameter]:
    return {parameter for module in modules for parameter in module.parameters()}


def param_groups(
    model: nn.Module,
    *,
    lr: float,
    router_lr: float | None = None,
    expert_lr: float | None = None,
    shared_lr: float | None = None,
    weight_decay: float = 0.1,
    no_decay: Collection[str] = ("routers", "embedding", "vector"),
) -> list[dict[str, Any]]:
    """Groups for a torch optimizer: every parameter once, with the learning rate of its part.

    Fine-tuning a mixture overfits sooner than a dense model; the field answers with a smaller learning rate for the
    experts, more dropout inside them (Fedus et al. 2021, section 2.4), or by training parts of the model alone
    (`freeze`; Zoph et al. 2022, section 4).

    Args:
        model: the model; frozen parameters are in the groups too, optimizers leave them alone.
        lr: the learning rate of everything else.
        router_lr: of the routers; None: `lr`, as for the others.
        expert_lr: of the experts.
        shared_lr: of the shared experts and their gates.
        weight_decay: of what `no_decay` does not name.
        no_decay: parts ("routers", "experts", "shared", "rest") and kinds ("matrix", "embedding", "vector": norms and
            biases) that are not decayed.

    Returns:
        Dicts with "role" (the part), "params", "lr" and "weight_decay".

    Raises:
        UserError: an unknown name in `no_decay`.

    Example:
        >>> import mixtura as mx
        >>> model = nn.Sequential(nn.Linear(4, 4), mx.MoEConfig(dim=4, hidden=8, num_experts=2).build())
        >>> groups = param_groups(model, lr=1e-3, router_lr=1e-4)
        >>> [(group["role"], len(group["params"]), group["lr"], group["weight_decay"]) for group in groups]
        [('rest', 1, 0.001, 0.1), ('rest', 1, 0.001, 0.0), ('routers', 1, 0.0001, 0.0), ('experts', 2, 0.001, 0.1)]
    """
    known = (*get_args(Part), *get_args(Kind))
    no_decay = (no_decay,) if isinstance(no_decay, str) else no_decay
    if unknown := sorted(set(no_decay) - set(known)):
        raise UserError(f"expected no_decay among {', '.join(known)}, got {', '.join(map(repr, unknown))}")
    rates = {"routers": router_lr, "experts": expert_lr, "shared": shared_lr}
    groups: dict[tuple[Part, float], list[nn.Parameter]] = defaultdict(list)
    for parameter, role in roles(model).items():
        groups[role.part, 0.0 if {*role} & {*no_decay} else weight_decay].append(parameter)
    return [
        {"role": part, "params": parameters, "lr": lr if (rate := rates.get(part)) is None else rate}
        | {"weight_decay": decay}
        for (part, decay), parameters in groups.items()
    ]


def freeze(model: nn.Module, *, train: Part | Collection[Part]) -> None:
    """Let only some parts of a model learn: `requires_grad` becomes true for them and false for all others.

    Undo it by `model.requires_grad_()`. Routers that should also stop drawing noise: `freeze_routing`.

    Args:
        model: the model.
        train: "routers", "experts", "shared", "rest", or several of them; none: nothing learns.

    Raises:
        UserError: an unknown part, or parts of which the model has nothing.

    Example:
        >>> import mixtura as mx
        >>> layer = mx.MoEConfig(dim=4, hidden=8, num_experts=2).build()
        >>> freeze(layer, train="routers")
        >>> [name for name, parameter in layer.named_parameters() if parameter.requires_grad]
        ['router.weight']
    """
    parts = {train} if isinstance(train, str) else set(train)
    if unknown := sorted(parts - set(get_args(Part))):
        raise UserError(f"expected train among {', '.join(get_args(Part))}, got {', '.join(map(repr, unknown))}")
    found = roles(model)
    if missing := sorted(parts - {role.part for role in found.values()}):
        raise UserError(f"expected a model with parameters of the parts to train, got none of {', '.join(missing)}")
    for parameter, role in found.items():
        parameter.requires_grad_(role.part in parts)


def freeze_routing(model: nn.Module) -> None:
    """Make every router choose as in evaluation and learn nothing, while the rest trains, also after `model.train()`.

    No noise, no jitter, no random drops, no walk of the bias. The losses of a layer still act on what lies before its
    router; leave them out (`layer.losses.clear()`) if the rest should not adapt to them either.

    Raises:
        UserError: a model without routers.

    Example:
        >>> import mixtura as mx
        >>> layer = mx.MoEConfig(dim=4, hidden=8, num_experts=2, router="noisy_topk").build()
        >>> freeze_routing(layer)
        >>> layer.train().router.training, layer.router.weight.requires_grad
        (False, False)
        >>> unfreeze_routing(layer); layer.router.training, layer.router.weight.requires_grad
        (True, True)
    """
    for router in _routers(model):
        router.freeze()


def unfreeze_routing(model: nn.Module) -> None:
    """Undo `freeze_routing`: what it froze learns again; parameters that were frozen before stay so.

    Raises:
        UserError: a model without routers.

    Example:
        >>> import mixtura as mx
        >>> unfreeze_routing(mx.routers.Switch(4, 2))
    """
    for router in _routers(model):
        router.unfreeze()


def _routers(model: nn.Module) -> list[Router]:
    routers = [module for module in model.modules() if isinstance(module, Router)]
    if not routers:
        raise UserError(f"expected a model with routers, got a {type(model).__name__} without")
    return routers
