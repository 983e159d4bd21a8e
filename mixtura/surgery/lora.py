"""Low-rank adapters (LoRA) on stacked experts and on routers, computed beside the frozen weights and never expanded."""

import pickle
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # torch's own customary name
from torch.nn.utils import parametrize

from mixtura.errors import UserError
from mixtura.experts import GroupedMLP
from mixtura.hooks import outside_graph
from mixtura.kernels.activations import ACTIVATIONS
from mixtura.layer import MoE
from mixtura.routing import Rows
from mixtura.surgery.layers import mixtures

Target = Literal["experts", "routers"]


class LoRAExperts(nn.Module):
    """Stacked experts whose matrices are W_e + (alpha / rank) B_e A_e, with W frozen.

    Each expert's rows pass W_e, and A_e then B_e: no product B_e A_e, of the size of all experts' weights, is made.
    B starts at 0, so that nothing changes at first.

    Source: Hu et al. 2022 (LoRA), section 4.1.

    Args:
        base: the experts.
        rank: r.
        alpha: the adapters' strength; at alpha = rank they count once.

    Shapes:
        up_a: (E, r, D). up_b: (E, F, r), gated (E, 2F, r). down_a: (E, r, F). down_b: (E, D, r).

    Raises:
        UserError: a rank below 1.

    Example:
        >>> experts = LoRAExperts(GroupedMLP(num_experts=4, dim=8, hidden=16), rank=2)
        >>> sorted(name for name, p in experts.named_parameters() if p.requires_grad)
        ['down_a', 'down_b', 'up_a', 'up_b']
    """

    def __init__(self, base: GroupedMLP, *, rank: int, alpha: float | None = None) -> None:
        super().__init__()
        if rank < 1:
            raise UserError(f"expected a rank of at least 1, got {rank}")
        self.base = base.requires_grad_(requires_grad=False)
        self.num_experts, self.dim, self.rank = base.num_experts, base.dim, rank
        self.alpha = float(rank if alpha is None else alpha)
        new, (E, columns, D), hidden = base.up_proj.new_empty, base.up_proj.shape, base.hidden
        self.up_a, self.up_b = nn.Parameter(new(E, rank, D)), nn.Parameter(new(E, columns, rank))
        self.down_a, self.down_b = nn.Parameter(new(E, rank, hidden)), nn.Parameter(new(E, D, rank))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw A as `nn.Linear` does and set B to 0."""
        for a, b in ((self.up_a, self.up_b), (self.down_a, self.down_b)):
            nn.init.uniform_(a, -(a.shape[2] ** -0.5), a.shape[2] ** -0.5)
            nn.init.zeros_(b)

    def forward(self, rows: Rows) -> Tensor:
        """Run each expert on its rows: Rows -> (N, D), weighted."""
        y_ND: Tensor = outside_graph(LoRAExperts._run_each, self, rows)
        return y_ND

    def _run_each(self, rows: Rows) -> Tensor:
        base, parts = self.base, rows.index.parts()
        *inputs, tail = rows.gather().split(parts)
        # Taken apart once: indexing each expert would write a gradient of all of them each time.
        stacks = (base.up_proj, base.up_bias, self.up_a, self.up_b, base.down_proj, base.down_bias, self.down_a)
        taken = [[None] * len(inputs) if stack is None else stack.unbind() for stack in (*stacks, self.down_b)]
        outputs = [self._expert(x, *weights) for x, *weights in zip(inputs, *taken, strict=True)]
        return rows.scale(torch.cat([*outputs, tail.new_zeros(tail.shape[0], self.dim)]))

    def _expert(self, x: Tensor, *weights: Any) -> Tensor:
        up, up_bias, up_a, up_b, down, down_bias, down_a, down_b = weights
        scale = self.alpha / self.rank
        z = F.linear(x, up, up_bias) + scale * F.linear(F.linear(x, up_a), up_b)
        h = F.dropout(ACTIVATIONS[self.base.activation].forward(z), self.base.dropout, self.training)
        return F.linear(h, down, down_bias) + scale * F.linear(F.linear(h, down_a), down_b)

    @torch.no_grad()
    def merged(self) -> GroupedMLP:
        """The experts with the adapters added into their own weights, in place."""
        scale = self.alpha / self.rank
        self.base.up_proj.baddbmm_(self.up_b, self.up_a, alpha=scale)
        self.base.down_proj.baddbmm_(self.down_b, self.down_a, alpha=scale)
        return self.base.requires_grad_()

    def extra_repr(self) -> str:
        """Rank and strength, for print(model)."""
        return f"rank={self.rank}, alpha={self.alpha}"


class _LowRank(nn.Module):
    """A router's matrix with an adapter, as a parametrization."""

    def __init__(self, weight: Tensor, *, rank: int, alpha: float) -> None:
        super().__init__()
        self.a = nn.Parameter(weight.new_empty(rank, weight.shape[1]))
        self.b = nn.Parameter(weight.new_zeros(weight.shape[0], rank))
        self.scale = alpha / rank
        nn.init.uniform_(self.a, -(weight.shape[1] ** -0.5), weight.shape[1] ** -0.5)

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.scale * (self.b @ self.a)


def add_lora(
    model: nn.Module,
    *,
    rank: int = 8,
    alpha: float | None = None,
    targets: Target | Collection[Target] = ("experts", "routers"),
) -> None:
    """Freeze a model and give its mixtures adapters, which alone learn from now on, in place.

    Args:
        model: with mixtures of `GroupedMLP` experts.
        rank: r.
        alpha: the adapters' strength; None: r.
        targets: "experts", "routers" (their matrix), or both.

    Raises:
        UserError: an unknown target, a rank below 1, a router without a matrix, or adapted or frozen experts.

    Example:
        >>> import mixtura as mx
        >>> layer = mx.MoEConfig(dim=8, hidden=16, num_experts=4).build()
        >>> add_lora(layer, rank=2)
        >>> sum(p.numel() for p in layer.parameters() if p.requires_grad)
        536
    """
    chosen = {targets} if isinstance(targets, str) else set(targets)
    if not chosen or not chosen <= set(get_args(Target)):
        raise UserError(f"expected targets among {', '.join(get_args(Target))}, got {', '.join(sorted(chosen)) or '-'}")
    if rank < 1:
        raise UserError(f"expected a rank of at least 1, got {rank}")
    layers = mixtures(model)
    for name, layer in layers.items():
        if parametrize.is_parametrized(layer.experts) or parametrize.is_parametrized(layer.router):
            raise UserError("expected no frozen or adapted experts, got some; unfreeze_experts, or merge_lora")
        if "routers" in chosen and layer.router.weight is None:
            raise UserError(f"expected a router with a matrix in {name or 'the layer'}, got {layer.router}")
    model.requires_grad_(requires_grad=False)
    for layer in layers.values():
        if "experts" in chosen:
            assert isinstance(layer.experts, GroupedMLP)
            layer.experts = LoRAExperts(layer.experts, rank=rank, alpha=alpha).train(layer.experts.training)
        if "routers" in chosen:
            assert layer.router.weight is not None
            adapter = _LowRank(layer.router.weight, rank=rank, alpha=float(rank if alpha is None else alpha))
            parametrize.register_parametrization(layer.router, "weight", adapter)


def merge_lora(model: nn.Module) -> None:
    """Add every adapter into the weights it belongs to, in place; the whole model learns again.

    Raises:
        UserError: no adapters.

    Example:
        >>> import mixtura as mx
        >>> layer = mx.MoEConfig(dim=8, hidden=16, num_experts=4).build()
        >>> add_lora(layer, rank=2); merge_lora(layer); type(layer.experts).__name__
        'GroupedMLP'
    """
    for layer in _adapted(model):
        if isinstance(layer.experts, LoRAExperts):
            layer.experts = layer.experts.merged()
        if parametrize.is_parametrized(layer.router, "weight"):
            parametrize.remove_parametrizations(layer.router, "weight", leave_parametrized=True)
    model.requires_grad_()


def _adapted(model: nn.Module) -> list[MoE]:
    layers = [module for module in model.modules() if isinstance(module, MoE)]
    found = [
        layer
        for layer in layers
        if isinstance(layer.experts, LoRAExperts)
        or (parametrize.is_parametrized(layer.router, "weight") and _router_adapter(layer) is not None)
    ]
    if not found:
        raise UserError(f"expected a model with adapters, got a {type(model).__name__} without; see add_lora")
    return found


def _router_adapter(layer: MoE) -> _LowRank | None:
    if not parametrize.is_parametrized(layer.router, "weight"):
        return None
    adapter = layer.router.parametrizations["weight"][0]  # type: ignore[index]  # a ModuleDict
    return adapter if isinstance(adapter, _LowRank) else None


class LoRAParts(NamedTuple):
    """The adapters of a model.

    Attributes:
        rank: r.
        alpha: their strength.
        targets: what has some: "experts", "routers".
        tensors: by the name of the experts (up_a, up_b, down_a, down_b; see `LoRAExperts`) or of the router, whose
            matrix W + (alpha / r) b a has a (r, D) and b (E, r).

    Example:
        >>> LoRAParts(rank=2, alpha=2.0, targets=["routers"], tensors={}).rank
        2
    """

    rank: int
    alpha: float
    targets: list[Target]
    tensors: dict[str, dict[str, nn.Parameter]]


def lora_parts(model: nn.Module) -> LoRAParts:
    """A model's adapters, by name.

    Raises:
        UserError: no adapters.

    Example:
        >>> import mixtura as mx
        >>> layer = mx.MoEConfig(dim=8, hidden=16, num_experts=4).build()
        >>> add_lora(layer, rank=2)
        >>> {name: list(parts) for name, parts in lora_parts(layer).tensors.items()}
        {'router': ['a', 'b'], 'experts': ['up_a', 'up_b', 'down_a', 'down_b']}
    """
    layer = _adapted(model)[0]
    targets: list[Target] = []
    rank, alpha = 0, 0.0
    if isinstance(layer.experts, LoRAExperts):
        targets.append("experts")
        rank, alpha = layer.experts.rank, layer.experts.alpha
    if (adapter := _router_adapter(layer)) is not None:
        targets.append("routers")
        rank = adapter.a.shape[0]
        alpha = adapter.scale * rank
    tensors = {
        name.removesuffix(".parametrizations.weight.0"): dict(module.named_parameters(recurse=False))
        for name, module in model.named_modules()
        if isinstance(module, LoRAExperts | _LowRank)
    }
    return LoRAParts(rank, alpha, targets, tensors)


def save_lora(model: nn.Module, path: str | Path) -> None:
    """Write a model's adapters, without the weights under them, for `load_lora`.

    Raises:
        UserError: no adapters.

    Example:
        >>> import mixtura as mx, tempfile
        >>> layer = mx.MoEConfig(dim=8, hidden=16, num_experts=4).build()
        >>> add_lora(layer, rank=2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_lora(layer, Path(folder, "adapters.pt"))
        ...     merge_lora(layer); load_lora(layer, Path(folder, "adapters.pt"))
        >>> layer.experts.rank
        2
    """
    parts = lora_parts(model)
    tensors = {name: tensor.detach().cpu() for name, tensor in _flat(parts).items()}
    facts = {"rank": parts.rank, "alpha": parts.alpha, "targets": parts.targets}
    torch.save({**facts, "tensors": tensors}, path)


def load_lora(model: nn.Module, path: str | Path) -> None:
    """Give a model without adapters those of a file.

    Raises:
        UserError: no such file, not one of `save_lora`, or adapters of another model.

    Example:
        >>> load_lora(nn.Linear(1, 1), "nowhere.pt")
        Traceback (most recent call last):
        ...
        mixtura.errors.UserError: expected a file of adapters, got 'nowhere.pt', which does not exist
    """
    if not Path(path).is_file():
        raise UserError(f"expected a file of adapters, got {str(path)!r}, which does not exist")
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        rank, alpha, targets, tensors = (saved[name] for name in ("rank", "alpha", "targets", "tensors"))
    except (RuntimeError, EOFError, ValueError, KeyError, TypeError, pickle.UnpicklingError) as error:
        raise UserError(f"expected a file that save_lora wrote in {str(path)!r}, got something else") from error
    add_lora(model, rank=rank, alpha=alpha, targets=targets)
    mine = _flat(lora_parts(model))
    shapes, theirs = ({name: tuple(t.shape) for name, t in each.items()} for each in (mine, tensors))
    if shapes != theirs:
        merge_lora(model)
        different = sorted(name for name in {*shapes, *theirs} if shapes.get(name) != theirs.get(name))
        raise UserError(f"expected adapters of this model in {str(path)!r}, got another's; {different[0]} differs")
    with torch.no_grad():
        for name, tensor in mine.items():
            tensor.copy_(tensors[name])


def _flat(parts: LoRAParts) -> dict[str, nn.Parameter]:
    return {f"{name}.{part}": tensor for name, held in parts.tensors.items() for part, tensor in held.items()}
