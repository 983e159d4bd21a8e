"""The one place that imports transformers: its experts interface, its configs, and its models as the truth."""

import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mixtura.errors import UserError
from mixtura.models.attention import Rotary

# Rules whose frequencies change with the length of what is read.
_MOVING = ("dynamic", "longrope")


def _transformers() -> Any:
    try:
        import transformers
        import transformers.integrations.moe
    except ImportError as error:
        raise UserError(
            "expected transformers of at least 5.0, got none with an experts interface; pip install 'mixtura[hub]'"
        ) from error
    return transformers


def experts_interface() -> Any:
    """The registry in which transformers looks an `experts_implementation` up.

    Raises:
        UserError: transformers is missing, or too old to have it.

    Example:
        >>> "grouped_mm" in experts_interface()
        True
    """
    return _transformers().integrations.moe.ALL_EXPERTS_FUNCTIONS


def read_config(folder: Path) -> Any:
    """The config of a checkpoint, with the defaults of its family for what its file leaves out.

    Raises:
        UserError: no config.json, or one that transformers refuses.

    Example:
        >>> read_config(Path("nowhere"))
        Traceback (most recent call last):
        ...
        mixtura.errors.UserError: expected a checkpoint's folder with a config.json, got 'nowhere'
    """
    if not (folder / "config.json").is_file():
        raise UserError(f"expected a checkpoint's folder with a config.json, got '{folder}'")
    try:
        return _transformers().AutoConfig.from_pretrained(folder)
    except (ValueError, TypeError, KeyError, OSError) as error:  # what it raises for what it cannot read
        raise UserError(f"expected a config.json that transformers reads, got '{folder}': {one_line(error)}") from error


def make_config(model_type: str, values: Mapping[str, Any]) -> Any:
    """A config of one family.

    Example:
        >>> make_config("llama", {"hidden_size": 64}).hidden_size
        64
    """
    return _transformers().AutoConfig.for_model(model_type, **values)


def rotary(config: Any, *, interleaved: bool = False) -> Rotary:
    """The frequencies that transformers computes for a config.

    Raises:
        UserError: a rule whose frequencies depend on the length of the text.

    Example:
        >>> rotary(make_config("llama", {"hidden_size": 8, "num_attention_heads": 2})).scale
        1.0
    """
    rule = dict(config.rope_parameters)
    kind = rule["rope_type"]
    if kind in _MOVING:
        raise UserError(f"expected rotary frequencies that stay the same at every length, got rope_type={kind!r}")
    if kind == "default":
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        width = int(width * rule.get("partial_rotary_factor", 1.0))
        found = Rotary.plain(width, base=rule["rope_theta"])
        return Rotary(frequencies=found.frequencies, interleaved=interleaved, rule=rule)
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    frequencies, scale = ROPE_INIT_FUNCTIONS[kind](config, "cpu")
    return Rotary(frequencies=tuple(frequencies.tolist()), scale=float(scale), interleaved=interleaved, rule=rule)


def latent_scale(config: Any, width: int) -> float:
    """What a latent attention multiplies its products with: 1 / sqrt(width), and YaRN's share.

    Example:
        >>> latent_scale(make_config("deepseek_v3", {}), 16)
        0.25
    """
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import yarn_apply_mscale

    scale: Any = yarn_apply_mscale
    return float(scale(config.rope_parameters, width**-0.5))


@torch.no_grad()
def logits_of(folder: Path, ids_BL: Tensor) -> Tensor:
    """What transformers' own model gives for token ids: (B, L) -> (B, L, V), in fp32.

    Example:
        >>> logits_of(Path("nowhere"), torch.zeros(1, 1, dtype=torch.long))
        Traceback (most recent call last):
        ...
        mixtura.errors.UserError: expected a checkpoint's folder with a config.json, got 'nowhere'
    """
    read_config(folder)
    model = _transformers().AutoModelForCausalLM.from_pretrained(folder, dtype="auto", attn_implementation="eager")
    logits: Tensor = model.eval()(ids_BL, use_cache=False).logits.float()
    return logits


def read_gguf(path: Path) -> tuple[Any, Iterable[tuple[str, Tensor]]]:
    """The config and the tensors of a GGUF file, dequantised by transformers; the whole model passes through memory.

    Raises:
        UserError: no such file, or one that transformers cannot read; the package gguf is missing.

    Example:
        >>> read_gguf(Path("nowhere.gguf"))
        Traceback (most recent call last):
        ...
        mixtura.errors.UserError: expected a GGUF file, got 'nowhere.gguf'
    """
    if not path.is_file():
        raise UserError(f"expected a GGUF file, got '{path}'")
    try:
        model = _transformers().AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name)
    # What it raises for what it cannot read.
    except (ImportError, ValueError, KeyError, IndexError, OSError, struct.error) as error:
        hint = "; pip install 'mixtura[gguf]'" if isinstance(error, ImportError) else ""
        raise UserError(
            f"expected a GGUF file that transformers reads, got '{path}': {one_line(error)}{hint}"
        ) from error
    return model.config, model.state_dict().items()


def one_line(error: BaseException) -> str:
    """The first line of a library's message.

    Example:
        >>> one_line(ValueError("one\\ntwo"))
        'one'
    """
    return (str(error).strip() or type(error).__name__).splitlines()[0]
