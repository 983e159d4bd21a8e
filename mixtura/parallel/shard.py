"""`parallelize`: a model's mixtures and everything around them on a mesh of ranks, by FSDP2 and DTensor."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, Shard

from mixtura.errors import UserError
from mixtura.experts import GroupedMLP, ModuleExperts
from mixtura.layer import MoE
from mixtura.parallel.balance import Placement
from mixtura.parallel.collective import Payload
from mixtura.parallel.expert import Chunks, ExpertParallel
from mixtura.parallel.mesh import AXES, complete
from mixtura.parallel.place import Slots, owned
from mixtura.parallel.tensor import TensorParallel

# Losses that look at every expert's weights, which no rank has once the experts are spread.
OF_ALL_EXPERTS = ("orthogonality",)


@dataclass(frozen=True, kw_only=True)
class Meshes:
    """The ranks as each kind of parameter sees them.

    Attributes:
        full: the axes of `AXES`.
        dense: (copies, shards): of what every rank needs; ranks along `ep` see different tokens and are data ranks too.
        experts: (copies, shards) of one rank's own experts.
    """

    full: DeviceMesh
    dense: DeviceMesh
    experts: DeviceMesh

    def size(self, axis: str) -> int:
        """Ranks along an axis."""
        return self.full.size(AXES.index(axis))


def meshes_of(mesh: DeviceMesh, *, num_experts: int) -> Meshes:
    """The sub-meshes of a mesh. More `ep` ranks than experts become copies of groups of E ranks: replicas.

    Args:
        mesh: see `complete`.
        num_experts: the smallest E of the model's layers.

    Raises:
        UserError: see `complete`; an `ep` beyond E that E does not divide.

    Example:
        >>> from mixtura.parallel.mesh import make_mesh, one_process
        >>> with one_process():
        ...     meshes_of(make_mesh(), num_experts=4).dense.mesh_dim_names
        ('copies', 'shards')
    """
    full = complete(mesh)
    dp, fsdp, ep, tp = full.shape
    if ep > num_experts:
        if ep % num_experts or fsdp > 1:
            raise UserError(
                f"expected ep of at most E={num_experts}, or a multiple of it without fsdp, got ep={ep} with "
                f"fsdp={fsdp}; each of the ep / E groups holds a replica of all experts"
            )
        dp, ep = dp * ep // num_experts, num_experts
        full = DeviceMesh(full.device_type, full.mesh.view(dp, fsdp, ep, tp), mesh_dim_names=AXES)
    shape = (dp, fsdp * ep, tp) if fsdp > 1 else (dp * ep, 1, tp)
    dense = DeviceMesh(full.device_type, full.mesh.view(shape), mesh_dim_names=("copies", "shards", "tp"))
    return Meshes(full=full, dense=dense["copies", "shards"], experts=full["dp", "fsdp"])


def parallelize(
    model: nn.Module,
    mesh: DeviceMesh,
    *,
    chunks: Chunks = 1,
    payload: Payload | None = None,
    dim_out: int | None = None,
    node_size: int = 1,
    placement: Mapping[str, Placement] | None = None,
    reshard_after_forward: bool = True,
) -> nn.Module:
    """Put a model with mixtures on a mesh, in place; it is called and trained as before.

    | axis | experts | everything else | tokens |
    |---|---|---|---|
    | `dp` | a copy on each rank | a copy on each rank | different |
    | `ep` | spread: E / ep on each rank | a copy on each rank, or cut with `fsdp` | different |
    | `fsdp` | cut, gathered when used | cut, gathered when used | different |
    | `tp` | each expert's hidden width cut | a copy on each rank | the same |

    Every rank's loss is the mean over its own tokens; gradients become those of the mean over all ranks. Rank 0's
    weights count. Make the optimizer afterwards, by `mx.param_groups`, which keeps parameters of different meshes
    apart; clip by `mixtura.parallel.clip_grad_norm`; save by `mixtura.parallel.Saver`. Parameters keep their names.

    Args:
        model: on the mesh's device, built alike on every rank; any model whose layers are `mx.MoE`.
        mesh: of all ranks, with axes among dp, fsdp, ep, tp in this order.
        chunks: see `ExpertParallel`.
        payload: see `ExpertParallel`.
        dim_out: see `ExpertParallel`; of every layer.
        node_size: ranks along `ep` that are on one machine; rows for other machines then go through the rank of the own
            one that stands for their receiver, in fewer messages. 1: straight.
        placement: by the layer's name, where its experts live and which have copies (`place_experts`); other layers
            keep their order. What a model computes stays the same, and so do its checkpoints.
        reshard_after_forward: with `fsdp`, free gathered parameters between forward and backward pass.

    Raises:
        UserError: a combination that is not possible, with the reason; ranks with different models.

    Example:
        >>> import torch
        >>> import mixtura as mx
        >>> from mixtura.parallel.mesh import make_mesh, one_process
        >>> with one_process():
        ...     layer = mx.MoEConfig(dim=8, hidden=16, num_experts=4, k=2).build()
        ...     parallelize(layer, make_mesh())(torch.zeros(3, 8)).shape
        torch.Size([3, 8])
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, MoE)}
    placement = {} if placement is None else placement
    meshes = meshes_of(mesh, num_experts=min((layer.router.num_experts for layer in layers.values()), default=1 << 30))
    _check_placement(layers, meshes, placement)
    _check(layers, meshes, placement)
    nodes = _nodes(meshes, node_size)
    same_everywhere(model, layers)
    spread = meshes.size("ep") > 1 or meshes.size("tp") > 1
    for name, layer in layers.items() if spread else ():
        experts, slots = layer.experts, None
        if name in placement:
            slots = Slots(torch.tensor(placement[name].order))
            slots.expand(experts)
        if meshes.size("tp") > 1:
            assert isinstance(experts, GroupedMLP)
            experts = TensorParallel(experts, meshes.full["ep", "tp"])
        layer.experts = ExpertParallel(
            experts,
            meshes.full["ep"],
            nodes=nodes,
            slots=slots,
            chunks=chunks,
            payload=payload,
            dim_out=dim_out,
            layer=name,
            state=partial(_state, layer),
        )
        _fully_shard(layer.experts, meshes.experts, reshard=reshard_after_forward, place=_second_cut)
        scale_gradients(layer.experts, 1 / meshes.size("ep"))
        layer.experts.tie_copies()
    scalars = _reduce_scalars(model, meshes.dense)
    for unit in units(model):
        _fully_shard(unit, meshes.dense, reshard=reshard_after_forward, ignored=scalars)
    _fully_shard(model, meshes.dense, reshard=reshard_after_forward, ignored=scalars)
    return model


def _nodes(meshes: Meshes, size: int) -> DeviceMesh | None:
    """The ranks along `ep` as (nodes, ranks on each)."""
    ep = meshes.size("ep")
    if size < 1 or ep % size:
        raise UserError(f"expected a node_size that divides ep={ep}, got {size}")
    if size in (1, ep):
        return None
    dp, fsdp, _, tp = meshes.full.shape
    ranks = meshes.full.mesh.view(dp, fsdp, ep // size, size, tp)
    names = ("dp", "fsdp", "nodes", "local", "tp")
    return DeviceMesh(meshes.full.device_type, ranks, mesh_dim_names=names)["nodes", "local"]


def _check_placement(layers: Mapping[str, MoE], meshes: Meshes, placement: Mapping[str, Placement]) -> None:
    """Refuse a placement of other layers, ranks or experts.

    Raises:
        UserError: with the reason.
    """
    ep = meshes.size("ep")
    if placement and ep == 1:
        raise UserError("expected a mesh with ep for a placement of experts, got ep=1; leave the placement out")
    for name, placed in placement.items():
        if name not in layers:
            raise UserError(f"expected placements of the layers {', '.join(layers)}, got one of {name!r}")
        if isinstance(layers[name].experts, ModuleExperts):
            raise UserError(f"expected stacked experts, as GroupedMLP, to place in layer {name}, got ModuleExperts")
        E = layers[name].router.num_experts
        if len(placed.experts) != ep or set(placed.order) != set(range(E)):
            raise UserError(
                f"expected a placement of {E} experts on {ep} ranks in layer {name}, got {len(set(placed.order))} on "
                f"{len(placed.experts)}; make it by place_experts(loads, ranks={ep})"
            )


def _state(layer: MoE) -> tuple[str, ...]:
    return str(layer.capacity if layer.training else layer.eval_capacity), str(layer.training), layer.policy


def _second_cut(parameter: nn.Parameter) -> Shard:
    """The dimension along which fsdp cuts a spread expert's parameter: one that nothing else cuts.

    Cut twice along one dimension, a tensor would be stored in strips.
    """
    if not isinstance(parameter, DTensor):
        return Shard(0)
    mesh, placements = parameter.device_mesh, parameter.placements
    cut = {p.dim for dim, p in enumerate(placements) if isinstance(p, Shard) and mesh.size(dim) > 1}
    # None is left of a bias that ep and tp cut: `_check` has made sure that fsdp does not cut it.
    return Shard(next((dim for dim in range(parameter.ndim) if dim not in cut), 0))


def _fully_shard(
    module: nn.Module,
    mesh: DeviceMesh,
    *,
    reshard: bool,
    place: Callable[[nn.Parameter], Shard] | None = None,
    ignored: set[nn.Parameter] | None = None,
) -> None:
    if isinstance(module, MoE):
        module.register_forward_hook(_own_memory)
    fully_shard(
        module, mesh=mesh, reshard_after_forward=reshard, shard_placement_fn=place, ignored_params=ignored or None
    )
    assert isinstance(module, FSDPModule)
    # What one rank did not use must still be reduced with the others' part.
    module.set_reduce_scatter_unused_params(True, recurse=False)
    if dist.get_backend(mesh.get_group(0)) == "gloo":
        module.set_force_sum_reduction_for_comms(True)  # gloo has no mean


def _own_memory(_: nn.Module, __: object, y: Tensor) -> Tensor:
    """FSDP hangs its hook on a module's output, which a layer gives as a view: an in-place change would lose it."""
    return y.clone()


def _reduce_scalars(model: nn.Module, mesh: DeviceMesh) -> set[nn.Parameter]:
    """Average the gradients of parameters without dimensions, which FSDP takes none of, as they come; returns them.

    The mean of gradients that already are a mean is that mean: with several backward passes it stays right.
    """
    groups = [mesh.get_group(dim) for dim in range(mesh.ndim) if mesh.size(dim) > 1]

    def average(parameter: nn.Parameter) -> None:
        assert parameter.grad is not None
        for group in groups:
            dist.all_reduce(parameter.grad, group=group)
        parameter.grad /= mesh.size()

    scalars = {parameter for parameter in model.parameters() if parameter.ndim == 0}
    for parameter in scalars:
        parameter.register_post_accumulate_grad_hook(average)
    return scalars


def scale_gradients(module: nn.Module, factor: float) -> None:
    """Multiply the reduced gradients of an FSDP module, its children's aside.

    Spread experts get the gradient of all ranks' tokens at once; FSDP takes the mean over copies and shards alone.
    """
    assert isinstance(module, FSDPModule)

    def scale(gradient: Tensor) -> None:
        gradient.mul_(factor)

    if factor != 1:
        module.set_all_reduce_hook(scale)


def units(model: nn.Module) -> list[nn.Module]:
    """The parts of a model that are gathered and reduced one by one: the children of its outermost lists.

    A part that shares a parameter with the rest of the model stays with the rest.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        >>> len(units(model))
        2
    """
    found: list[nn.Module] = []

    def search(module: nn.Module) -> None:
        if isinstance(module, MoE | ExpertParallel):
            return
        for child in module.children():
            if isinstance(module, nn.ModuleList | nn.Sequential) and not isinstance(
                child, nn.ModuleList | nn.ModuleDict
            ):
                found.append(child)
            else:
                search(child)

    search(model)
    everywhere = Counter(id(p) for module in model.modules() for p in module._parameters.values() if p is not None)
    return [unit for unit in found if _owns(unit, everywhere) and next(unit.parameters(), None) is not None]


def _owns(unit: nn.Module, everywhere: Counter[int]) -> bool:
    inside = Counter(id(p) for module in unit.modules() for p in module._parameters.values() if p is not None)
    return all(everywhere[key] == count for key, count in inside.items())


def _check(layers: dict[str, MoE], meshes: Meshes, placement: Mapping[str, Placement]) -> None:
    """Refuse what cannot be put on this mesh.

    Raises:
        UserError: with the reason.
    """
    spread = [axis for axis in ("ep", "tp") if meshes.size(axis) > 1]
    if spread and not layers:
        raise UserError(f"expected a model with mx.MoE layers for {' and '.join(spread)}, got none; use dp or fsdp")
    fsdp, ep = meshes.size("fsdp"), meshes.size("ep")
    for name, layer in layers.items() if spread else ():
        where = f"layer {name or '(the model itself)'}"
        E = len(placement[name].order) if name in placement else layer.router.num_experts
        if owned(E, rank=ep - 1, size=ep)[0] == E:
            raise UserError(
                f"expected an ep that gives each rank experts in {where}, got ep={ep}, where {-(-E // ep)} each leave "
                f"none of the {E} for the last; choose an ep that divides {E}"
            )
        if isinstance(layer.experts, ExpertParallel):
            raise UserError(f"expected experts on one rank in {where}, got experts that are spread already")
        if meshes.size("tp") > 1 and not isinstance(layer.experts, GroupedMLP):
            raise UserError(
                f"expected GroupedMLP in {where}, whose hidden width tp can cut, got {type(layer.experts).__name__}"
            )
        if losses := sorted(set(layer.losses) & set(OF_ALL_EXPERTS)):
            raise UserError(
                f"expected losses that a rank can compute in {where}, got {losses[0]!r}: it needs all experts"
            )
        if not isinstance(layer.experts, ModuleExperts):
            _check_second_cut(layer.experts, fsdp=fsdp, tp=meshes.size("tp"), where=where)


def _check_second_cut(experts: nn.Module, *, fsdp: int, tp: int, where: str) -> None:
    for name, parameter in experts.named_parameters() if fsdp > 1 else ():
        dim = 2 if tp > 1 and name.startswith("up") else 1
        if parameter.ndim <= dim or parameter.shape[dim] % fsdp:
            raise UserError(
                f"expected experts that fsdp={fsdp} can cut along dimension {dim} in {where}, "
                f"got {name} of shape {tuple(parameter.shape)}; change fsdp, or the width"
            )


def same_everywhere(model: nn.Module, layers: dict[str, MoE]) -> None:
    """Give every rank rank 0's weights, once all ranks are known to have built the same model.

    Raises:
        UserError: names the first difference and the rank that has it.
    """
    mine = {name: f"{tuple(t.shape)} {t.dtype}" for name, t in _states(model)}
    mine |= {f"{name} (layer)": f"{layer.extra_repr()} {type(layer.router).__name__}" for name, layer in layers.items()}
    everybody: list[dict[str, str]] = [{}] * dist.get_world_size()
    dist.all_gather_object(everybody, mine)
    for rank, theirs in enumerate(everybody):
        for key in {**everybody[0], **theirs}:
            if theirs.get(key) != everybody[0].get(key):
                raise UserError(
                    f"expected the same model on every rank, got {key}: {everybody[0].get(key)} on rank 0 and "
                    f"{theirs.get(key)} on rank {rank}"
                )
    for _, tensor in _states(model):
        if not tensor.is_meta and not isinstance(tensor, DTensor):
            dist.broadcast(tensor.detach(), src=0)


def _states(model: nn.Module) -> Iterable[tuple[str, Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]
