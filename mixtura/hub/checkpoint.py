"""Checkpoints of the Hugging Face hub: read into our decoder, and written so that transformers reads them."""

import re
import shutil
import warnings
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mixtura.errors import UserError
from mixtura.hub import probe
from mixtura.hub.families import family_of, write_config
from mixtura.hub.files import read_tensors, write_tensors
from mixtura.hub.library import logits_of, read_config, read_gguf
from mixtura.hub.recipe import describe
from mixtura.mapping import fill, rename
from mixtura.models.causal import Causal
from mixtura.routers.sigmoid import SigmoidBias

SHARD_BYTES = 5_000_000_000
# What belongs to a checkpoint beside its weights and its config.
KEPT = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "generation_config.json")


def load(path: str | Path, *, dtype: torch.dtype | None = None, device: str = "cpu", check: bool = True) -> Causal:
    """Read a checkpoint: a folder with config.json and safetensors, or a GGUF file of a dense model.

    The model is built empty and filled tensor by tensor, so that beside it at most one tensor is in memory; a GGUF file
    is dequantised as a whole by transformers. Nothing is unpickled. Families: llama (SmolLM too), mistral, qwen2,
    qwen3, mixtral, qwen2_moe, qwen3_moe, olmoe, deepseek_v2 (as Lite has it), deepseek_v3, glm4_moe, granitemoe,
    gpt_oss.

    Args:
        path: the folder, or the file.
        dtype: of the weights; None: as in the checkpoint.
        device: where to put them.
        check: compare the model with the probe in the folder, where there is one; see `write_probe`.

    Raises:
        UserError: a family that is not known, a missing, damaged or additional tensor or file, shapes that the config
            does not ask for, pickles, quantised weights, or logits that are not the probe's.

    Warns:
        UserWarning: tensors of multi-token prediction, which are left out.

    Example:
        >>> import tempfile
        >>> from mixtura.models.causal import CausalConfig
        >>> config = CausalConfig.plain(vocab_size=10, context=16, layers=2, dim=8, heads=2, hidden=16)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = save(Causal(config), folder, format="llama")
        ...     load(folder).config.hidden
        16
    """
    path = Path(path)
    if path.suffix == ".gguf":
        config, tensors = read_gguf(path)
    else:
        config = read_config(path)
        tensors = read_tensors(path)
        if getattr(config, "quantization_config", None):
            raise UserError(f"expected weights that are not quantised, got quantization_config in '{path}'")
    family = family_of(config.model_type)
    ours = family.read(config)
    dtype = dtype or _dtype(config)
    with torch.device("meta"):
        model = Causal(ours).to(dtype)
    model.to_empty(device=device)
    model.tie()
    fill(_targets(model), _wanted(tensors, config, tied=ours.tie_weights), rules=family.reading())
    for module in model.modules():
        if isinstance(module, SigmoidBias):
            module.pending_counts.zero_()  # no tensor of a checkpoint
    if check:
        probe.check(path, lambda ids: model(ids.to(device)), dtype=dtype, tensors=_targets(model))
    return model


def _dtype(config: Any) -> torch.dtype:
    found = getattr(torch, config.dtype, None) if isinstance(config.dtype, str) else config.dtype
    return found if isinstance(found, torch.dtype) else torch.float32


def _targets(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and what belongs to a checkpoint of the buffers; tied ones once, under their first name."""
    stored = model.state_dict(keep_vars=True)
    named = chain(model.named_parameters(), model.named_buffers())
    return {name: tensor for name, tensor in named if name in stored}


def _wanted(tensors: Iterable[tuple[str, Tensor]], config: Any, *, tied: bool) -> Iterator[tuple[str, Tensor]]:
    """Without what transformers ignores too: stored frequencies, a tied output layer, multi-token prediction."""
    further = getattr(config, "num_nextn_predict_layers", 0) or 0
    extra = {config.num_hidden_layers + number for number in range(further)}
    left_out = 0
    for name, tensor in tensors:
        block = re.match(r"model\.layers\.(\d+)\.", name)
        if block and int(block[1]) in extra:
            left_out += 1
        elif not (name.endswith("rotary_emb.inv_freq") or (tied and name == "lm_head.weight")):
            yield name, tensor
    if left_out:
        warnings.warn(
            f"expected tensors of {config.num_hidden_layers} blocks, got {left_out} more of multi-token prediction: "
            "they are left out",
            stacklevel=2,
        )


def save(
    model: nn.Module,
    folder: str | Path,
    *,
    format: str,  # noqa: A002  # the hub's own word
    max_shard_bytes: int = SHARD_BYTES,
) -> Path:
    """Write a model as a folder that `AutoModelForCausalLM.from_pretrained` reads, and converters of other programs.

    What is written is what the model is now: a dense one whose MLPs have become mixtures is written as a mixture.
    Beside the weights stands a probe, a few logits that `load` checks.

    Args:
        model: a `Causal`, as `load` gives it.
        folder: where to; it must not hold anything yet.
        format: a family: "mixtral", "qwen3_moe", ...; see `load`.
        max_shard_bytes: size of a file; beside the model one shard is in memory.

    Returns:
        The folder.

    Raises:
        UserError: no such family, a model that it cannot express, a folder that is not empty.

    Example:
        >>> save(nn.Linear(2, 2), "new", format="llama")
        Traceback (most recent call last):
        ...
        mixtura.errors.UserError: expected a Causal, as mixtura.hub.load gives it, got Linear
    """
    if not isinstance(model, Causal):
        raise UserError(f"expected a Causal, as mixtura.hub.load gives it, got {type(model).__name__}")
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"expected a new or an empty folder, got '{folder}', which holds files")
    family, ours = family_of(format), describe(model)
    config = write_config(ours, format)
    config.dtype = str(model.embedding.weight.dtype).removeprefix("torch.")
    folder.mkdir(parents=True, exist_ok=True)
    rules, targets = family.writing(), _targets(model)
    write_tensors(folder, lambda: rename(targets, rules=rules), max_shard_bytes=max_shard_bytes)
    config.save_pretrained(folder)
    device, mode = model.embedding.weight.device, model.training
    model.eval()
    found = probe.take(
        lambda ids: model(ids.to(device)), vocab_size=ours.vocab_size, context=ours.context, tensors=targets
    )
    model.train(mode)
    found.write(folder)
    return folder


def write_probe(folder: str | Path) -> Path:
    """Let transformers itself say what a checkpoint gives, and store that beside it, for `load` to check against.

    Our reading of the checkpoint must agree; then each of its tensors gets its number in the probe too.

    Returns:
        The probe's file.

    Raises:
        UserError: whatever `load` refuses, and logits that are not transformers'.

    Example:
        >>> write_probe("nowhere")
        Traceback (most recent call last):
        ...
        mixtura.errors.UserError: expected a checkpoint's folder with a config.json, got 'nowhere'
    """
    folder = Path(folder)
    model = load(folder, check=False).eval()
    vocab_size, context = model.config.vocab_size, model.config.context
    found = probe.take(
        lambda ids: logits_of(folder, ids), vocab_size=vocab_size, context=context, tensors=_targets(model)
    )
    difference, dtype = found.difference(model), model.embedding.weight.dtype
    if not difference <= probe.TOLERANCE[dtype]:
        raise UserError(f"expected transformers' logits for '{folder}', got a relative difference of {difference:.1e}")
    return found.write(folder)


def convert(source: str | Path, target: str | Path, *, format: str | None = None, check: bool = True) -> float | None:  # noqa: A002  # the hub's own word
    """Read a checkpoint and write it anew, as another family where that can express it, with its tokenizer.

    Args:
        source: see `load`.
        target: see `save`.
        format: see `save`; None: the family that it is, which a GGUF file does not tell.
        check: let transformers read the result, and compare it with what was read.

    Returns:
        The relative difference of the logits; None without the check.

    Raises:
        UserError: whatever `load` and `save` refuse, and logits that differ.

    Example:
        >>> convert("nowhere", "new")
        Traceback (most recent call last):
        ...
        mixtura.errors.UserError: expected a checkpoint's folder with a config.json, got 'nowhere'
    """
    source, target = Path(source), Path(target)
    if source.suffix == ".gguf" and format is None:
        raise UserError(f"expected format= for a GGUF file, which says nothing of transformers, got '{source}'")
    kind: str = read_config(source).model_type if format is None else format
    family_of(kind)  # before anything is read
    model = load(source)
    save(model, target, format=kind)
    folder = source if source.is_dir() else source.parent
    for file in sorted({file for pattern in KEPT for file in folder.glob(pattern)}):
        shutil.copy(file, target / file.name)
    if not check:
        return None
    return probe.check(target, lambda ids: logits_of(target, ids), dtype=model.embedding.weight.dtype)
