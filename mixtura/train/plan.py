"""What a run will need on each rank, before it is started: memory, and what is sent in a step."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode  # the one way to see every tensor that is made
from torch.utils._pytree import tree_leaves

from mixtura.errors import UserError
from mixtura.experts import GroupedMLP
from mixtura.layer import MoE
from mixtura.train.config import MeshConfig, TrainConfig
from mixtura.train.setup import build_model
from mixtura.train.tasks.language import LanguageConfig, language_config
from mixtura.train.tasks.task import autocast

FLOAT = 4  # bytes
CUT_BY_TP = {"up_proj": 1, "up_bias": 1, "down_proj": 2}  # dimension


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What each rank will need.

    Attributes:
        parameters: held by the rank with most.
        memory: what for -> bytes at the end of a forward pass, where they are most.
        sent: over which axis -> bytes that a rank sends in a step, where all experts get as many rows.

    Example:
        >>> Plan(parameters=1, memory={"weights": 4}, sent={}).total
        4
    """

    parameters: int
    memory: Mapping[str, int]
    sent: Mapping[str, int]

    @property
    def total(self) -> int:
        """Bytes of everything together."""
        return sum(self.memory.values())

    def lines(self) -> list[str]:
        """For people."""
        rows = [*((name, size) for name, size in self.memory.items()), ("together", self.total)]
        rows += [(f"sent by {axis}, a step", size) for axis, size in self.sent.items()]
        return [
            f"{'parameters':>22}  {self.parameters:>12,}",
            *(f"{name:>22}  {size / 1e6:>12,.1f} MB" for name, size in rows),
        ]


def plan(config: TrainConfig) -> Plan:
    """What a language model's run will need on each rank: fp32 weights, gradients, AdamW's moments, activations.

    Parameters are counted on the meta device; activations are measured on one or two sequences and blocks of each kind,
    and extrapolated, so that no more memory is needed than for these. They are those of one process with the rank's
    batch: what `ep` receives beyond the even share, the hidden units that `tp` has elsewhere, and the parameters that
    `fsdp` has gathered at a time are not looked at.

    Raises:
        UserError: a run of another kind, whose sizes the data decide; a model that cannot be.

    Example:
        >>> plan(LanguageConfig()).memory["optimizer"] == 2 * plan(LanguageConfig()).memory["weights"]
        True
    """
    config = language_config(config, run=config.recipe)
    data, mesh = config.data, config.mesh
    config = replace(config, model=replace(config.model, vocab_size=data.vocab_size, context=data.seq_len))
    with torch.device("meta"):
        model = build_model(config)
    held = sum(held_numbers(model, mesh).values())
    memory = {"weights": FLOAT * held, "gradients": FLOAT * held, "optimizer": 2 * FLOAT * held}
    memory["activations"] = activations(config)
    return Plan(parameters=held, memory=memory, sent=sent_bytes(model, mesh, tokens=data.batch_size * data.seq_len))


def held_numbers(model: nn.Module, mesh: MeshConfig) -> dict[str, int]:
    """Numbers of each parameter on the rank that holds most of it, as `mixtura.parallel.parallelize` cuts them.

    Example:
        >>> held_numbers(nn.Linear(6, 5), MeshConfig(fsdp=2))
        {'weight': 18, 'bias': 3}
    """
    spread, shards = _spread(model, mesh), mesh.fsdp * mesh.ep if mesh.fsdp > 1 else 1
    held = {}
    for name, parameter in model.named_parameters():
        number, shape = parameter.numel(), parameter.shape
        if (E := spread.get(name)) is not None:
            ep, last = min(mesh.ep, E), CUT_BY_TP.get(name.rpartition(".")[2])
            per_expert = number // shape[0] // (mesh.tp if last else 1)
            held[name] = -(-shape[0] // ep) * per_expert // mesh.fsdp
        else:
            held[name] = -(-shape[0] // shards) * (number // shape[0]) if shape else number
    return held


def _spread(model: nn.Module, mesh: MeshConfig) -> dict[str, int]:
    """Parameters of experts that do not live on every rank -> their layer's E."""
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, MoE)}
    if mesh.ep == mesh.tp == 1:
        return {}
    for layer in layers.values():
        if not isinstance(layer.experts, GroupedMLP):
            raise UserError(f"expected GroupedMLP experts to plan with, got {type(layer.experts).__name__}")
    return {
        f"{name}.experts.{part}".lstrip("."): layer.router.num_experts
        for name, layer in layers.items()
        for part, _ in layer.experts.named_parameters()
    }


def sent_bytes(model: nn.Module, mesh: MeshConfig, *, tokens: int) -> dict[str, int]:
    """Axis -> bytes that each rank sends for the `tokens` of its own in a step; collectives are rings, as NCCL's.

    `gradients`: of what has copies. `fsdp`: every parameter gathered twice and its gradient reduced once (gloo sends
    the latter as twice as much). `ep`: four rows for each row whose expert is elsewhere. `tp`: two sums of all rows.

    Example:
        >>> sent_bytes(nn.Linear(4, 4, bias=False), MeshConfig(dp=2), tokens=8)
        {'gradients': 64}
    """
    spread, held = _spread(model, mesh), held_numbers(model, mesh)
    found = dict.fromkeys(("gradients", "fsdp", "ep", "tp"), 0.0)
    for name, number in held.items():
        ep = min(mesh.ep, spread[name]) if name in spread else 1
        shards = mesh.fsdp * (1 if name in spread else mesh.ep) if mesh.fsdp > 1 else 1
        copies = mesh.dp * mesh.ep // ep if name in spread or mesh.fsdp == 1 else mesh.dp
        found["gradients"] += 2 * _others(copies) * number * FLOAT
        found["fsdp"] += 3 * (shards - 1) * number * FLOAT
    for layer in model.modules():
        if isinstance(layer, MoE):
            rows = tokens * layer.router.k * layer.router.dim * FLOAT
            found["ep"] += 4 * _others(min(mesh.ep, layer.router.num_experts)) * rows
            found["tp"] += 2 * 2 * _others(mesh.tp) * rows
    return {axis: round(size) for axis, size in found.items() if size}


def _others(ranks: int) -> float:
    """The share of n ranks that the others are."""
    return 1 - 1 / ranks


def activations(config: LanguageConfig) -> int:
    """Bytes that a forward pass of the rank's batch keeps for its backward pass.

    Example:
        >>> from mixtura.models.gpt import GPTConfig
        >>> small = LanguageConfig(model=GPTConfig(dim=16, layers=1, heads=2, hidden=16, num_experts=2))
        >>> activations(small) > 32 * 128 * 16 * FLOAT
        True
    """
    period = config.model.moe_every if config.model.num_experts else 1
    layers = (period, 2 * period)
    a, b = (_kept_by_batch(config, number) for number in layers)
    further = config.model.layers / period - 1
    fixed, each = (one + further * (two - one) for one, two in zip(a, b, strict=True))
    return round(fixed + each * config.data.batch_size)


def _kept_by_batch(config: LanguageConfig, layers: int) -> tuple[float, float]:
    """What a model of so many blocks keeps whatever the batch, and for each sequence."""
    model = build_model(replace(config, model=replace(config.model, layers=layers)))
    with autocast(config, torch.device("cpu")):
        one, two = (kept_bytes(model, torch.zeros(n, config.data.seq_len, dtype=torch.int64)) for n in (1, 2))
    return 2 * one - two, two - one


def kept_bytes(model: nn.Module, ids_BL: Tensor) -> int:
    """Bytes of tensors that are alive when a training forward pass ends, parameters and buffers aside.

    Example:
        >>> class Squared(nn.Module):
        ...     def forward(self, x, targets_BL):
        ...         return (x.float() * 2).square().sum()
        >>> kept_bytes(Squared(), torch.zeros(10, 10))  # nothing needs a gradient: the sum alone
        4
    """
    known = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers(), ids_BL)}
    with Living() as living:
        loss = model(ids_BL, targets_BL=ids_BL)
    found = {ref.cdata: size for ref, size in living.made if not ref.expired() and ref.cdata not in known}
    del loss
    return sum(found.values())


class Living(TorchDispatchMode):
    """Notes every storage that is made inside its block.

    Example:
        >>> with Living() as living:
        ...     x = torch.zeros(3)
        >>> [(ref.expired(), size) for ref, size in living.made]
        [(False, 12)]
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's own
        self.made: list[tuple[StorageWeakRef, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # torch's own
        out = func(*args, **(kwargs or {}))
        for value in tree_leaves(out):
            if isinstance(value, Tensor):
                storage = value.untyped_storage()
                self.made.append((StorageWeakRef(storage), storage.nbytes()))
        return out
