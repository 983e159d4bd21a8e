"""Adapters in the files of PEFT: adapter_config.json and adapter_model.safetensors, both ways.

PEFT adapts stacked experts through its `target_parameters`. One adapter is two matrices for all experts, (E*r, in) with
an expert's rows together, and (out, r*E) with an expert's columns apart; two parameters of one module lie in each other
as `base_layer`, the one that the module has first innermost.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mixtura.errors import UserError
from mixtura.hub.families import family_of
from mixtura.hub.files import read_file, some, write_file
from mixtura.kernels.activations import unweave, weave
from mixtura.surgery.lora import add_lora, lora_parts, merge_lora

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
# What would change what an adapter computes, and must be as it is by default.
_REFUSED = ("use_dora", "lora_bias", "fan_in_fan_out", "rank_pattern", "alpha_pattern", "modules_to_save")


class _Names(NamedTuple):
    """What a family calls, in transformers' modules, the mixture in a block, its router, and the experts' matrices."""

    mixture: str | None
    router: str = "router"
    up: str = "up_proj"
    woven: bool = False  # gate and up rows alternate

    def of(self, ours: str) -> str:
        """Their name of one of our modules."""
        if self.mixture is None:
            return ours
        block = rf"model.layers.\1.{self.mixture}."
        ours = re.sub(r"blocks\.(\d+)\.feed_forward\.experts", rf"{block}experts", ours)
        return re.sub(r"blocks\.(\d+)\.feed_forward\.router", rf"{block}{self.router}", ours)


def _names(format: str | None) -> _Names:  # noqa: A002  # the hub's own word
    if format is None:
        return _Names(None)
    family_of(format)
    if format == "granitemoe":
        return _Names("block_sparse_moe", "router", "gate_up_proj")
    return _Names("mlp", "gate", "gate_up_proj", woven=format == "gpt_oss")


def save_adapters(model: nn.Module, folder: str | Path, *, format: str | None = None) -> Path:  # noqa: A002  # see above
    """Write a model's adapters as PEFT does, for `peft.PeftModel.from_pretrained` and programs that read its files.

    Args:
        model: with adapters of `mixtura.surgery.add_lora`.
        folder: where to.
        format: the family whose names to use, see `save`: the adapters then fit what transformers makes of the same
            model; None: the model's own names.

    Returns:
        The folder.

    Raises:
        UserError: no adapters, no such family.

    Example:
        >>> import tempfile
        >>> import mixtura as mx
        >>> layer = mx.MoEConfig(dim=8, hidden=16, num_experts=4).build()
        >>> mx.surgery.add_lora(layer, rank=2)
        >>> with tempfile.TemporaryDirectory() as name:
        ...     folder = save_adapters(layer, name)
        ...     json.loads((folder / CONFIG).read_text())["target_parameters"]
        ['experts.down_proj', 'experts.up_proj', 'router.weight']
    """
    names, folder = _names(format), Path(folder)
    parts = lora_parts(model)
    tensors = {key: tensor for key, tensor, _ in _written(parts.tensors, names)}
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": parts.rank,
        "lora_alpha": parts.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": [],
        "target_parameters": sorted({target for _, _, target in _written(parts.tensors, names)}),
        "inference_mode": True,
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_file(folder / WEIGHTS, tensors)
    (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return folder


def _written(parts: Mapping[str, Mapping[str, Tensor]], names: _Names) -> Iterator[tuple[str, Tensor, str]]:
    """PEFT's key, its tensor, and the parameter that it adapts."""
    for module, tensors in parts.items():
        theirs = _PREFIX + names.of(module)
        if "a" in tensors:
            target = f"{names.mixture}.{names.router}.weight" if names.mixture else "router.weight"
            for side in "ab":
                yield f"{theirs}.lora_{side.upper()}.weight", tensors[side], target
            continue
        within = f"{names.mixture}." if names.mixture else ""
        for kind, inner, parameter in (("up", ".base_layer", names.up), ("down", "", "down_proj")):
            a_ErI, b_EOr = tensors[f"{kind}_a"], tensors[f"{kind}_b"]
            if names.woven and kind == "up":
                b_EOr = weave(b_EOr.mT).mT
            target = f"{within}experts.{parameter}"
            yield f"{theirs}{inner}.lora_A.weight", a_ErI.flatten(0, 1), target
            yield f"{theirs}{inner}.lora_B.weight", b_EOr.permute(1, 2, 0).flatten(1), target


def load_adapters(model: nn.Module, folder: str | Path, *, format: str | None = None) -> None:  # noqa: A002  # see above
    """Give a model without adapters those that PEFT, or `save_adapters`, wrote, in place.

    Args:
        model: with mixtures, as `load` gives it.
        folder: with adapter_config.json and adapter_model.safetensors.
        format: the family whose names they have; None: the model's own.

    Raises:
        UserError: no such files, adapters of another kind, of other parts than all experts and routers, or of another
            model.

    Example:
        >>> load_adapters(nn.Linear(1, 1), "nowhere")
        Traceback (most recent call last):
        ...
        mixtura.errors.UserError: expected a folder with adapter_config.json, got 'nowhere'
    """
    names, folder = _names(format), Path(folder)
    config = _read_config(folder)
    held, rank = dict(read_file(folder / WEIGHTS)), config["r"]
    alpha = config["lora_alpha"] * (math.sqrt(rank) if config.get("use_rslora") else 1.0)
    experts = any(".experts." in key for key in held)
    routers = any(".experts." not in key for key in held)
    targets = [name for name, given in (("experts", experts), ("routers", routers)) if given]
    add_lora(model, rank=rank, alpha=alpha, targets=targets)  # type: ignore[arg-type]  # they are its two
    mine = lora_parts(model).tensors
    wanted = {key: tensor.shape for key, tensor, _ in _written(mine, names)}
    different = [key for key in held.keys() | wanted if key not in held or held[key].shape != wanted.get(key)]
    if different:
        merge_lora(model)  # adapters that nothing has trained add nothing
        raise UserError(
            f"expected adapters of this model's mixtures in '{folder}', got a difference: {some(sorted(different))}"
        )
    with torch.no_grad():
        _fill(mine, held, names)


def _fill(mine: Mapping[str, Mapping[str, Tensor]], held: Mapping[str, Tensor], names: _Names) -> None:
    for module, tensors in mine.items():
        theirs = _PREFIX + names.of(module)
        for name, tensor in tensors.items():
            inner = ".base_layer" if name.startswith("up") else ""
            value = held[f"{theirs}{inner}.lora_{name[-1].upper()}.weight"]
            if name.endswith("_a"):
                value = value.view_as(tensor)
            elif name.endswith("_b"):
                value = value.view(tensor.shape[1], tensor.shape[2], tensor.shape[0]).permute(2, 0, 1)
                if names.woven and name == "up_b":
                    value = unweave(value.mT).mT
            tensor.copy_(value)


def _read_config(folder: Path) -> dict[str, Any]:
    if not (folder / CONFIG).is_file():
        raise UserError(f"expected a folder with {CONFIG}, got '{folder}'")
    try:
        config: dict[str, Any] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        kind, rank, _ = config["peft_type"], config["r"], config["lora_alpha"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"expected a config of LoRA adapters in '{folder / CONFIG}', got something else") from error
    if kind != "LORA" or not isinstance(rank, int):
        raise UserError(f"expected adapters of type LORA, got {kind} with r={rank!r} in '{folder}'")
    for name in _REFUSED:
        if config.get(name):
            raise UserError(f"expected plain LoRA adapters, got {name}={config[name]!r} in '{folder}'")
    if config.get("target_modules"):
        raise UserError(
            f"expected adapters of experts and routers alone (target_parameters), got target_modules="
            f"{config['target_modules']!r} in '{folder}'; merge those by PEFT first"
        )
    return config
