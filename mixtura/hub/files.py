"""A checkpoint's tensors on disk: safetensors shards, read and written one tensor and one shard at a time.

Nothing is ever unpickled.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mixtura.errors import UserError
from mixtura.hub.library import one_line

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def _safetensors() -> Any:
    try:
        import safetensors
        import safetensors.torch
    except ImportError as error:
        raise UserError("checkpoints need one more package: pip install 'mixtura[hub]'") from error
    return safetensors


def read_tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """A checkpoint's tensors, one after another, shard by shard: at most one of them is in memory.

    Raises:
        UserError: no safetensors (a pickle is refused), a shard that the index names and that is missing, one that is
            damaged, or one that does not hold what the index says.

    Example:
        >>> next(read_tensors(Path("nowhere")))
        Traceback (most recent call last):
        ...
        mixtura.errors.UserError: expected model.safetensors, or shards with their index, in 'nowhere', got neither
    """
    for path, names in _shards(folder).items():
        yield from read_file(path, names=names)


def read_file(path: Path, *, names: set[str] | None = None) -> Iterator[tuple[str, Tensor]]:
    """The tensors of one safetensors file, one after another.

    Args:
        path: the file.
        names: what it should hold; None: whatever it holds.

    Raises:
        UserError: a missing or damaged file, or one that holds something else.

    Example:
        >>> next(read_file(Path("nowhere.safetensors")))
        Traceback (most recent call last):
        ...
        mixtura.errors.UserError: expected a whole safetensors file, got 'nowhere.safetensors': No such file or \
directory: nowhere.safetensors; copy it again
    """
    library = _safetensors()
    try:
        with library.safe_open(path, framework="pt") as shard:
            held = set(shard.keys())
            if names is not None and held != names:
                odd = sorted(held ^ names)
                raise UserError(f"expected in '{path}' what its index says, got a difference: {some(odd)}")
            for name in sorted(held):
                yield name, shard.get_tensor(name)
    except (library.SafetensorError, OSError) as error:
        raise UserError(f"expected a whole safetensors file, got '{path}': {one_line(error)}; copy it again") from error


def _shards(folder: Path) -> dict[Path, set[str] | None]:
    """Each file and the tensors that it should hold; None: whatever it holds."""
    if (folder / INDEX).is_file():
        try:
            where = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
        except (ValueError, KeyError) as error:
            raise UserError(
                f"expected an index with a weight_map, got '{folder / INDEX}': {one_line(error)}"
            ) from error
        found: dict[Path, set[str] | None] = {
            folder / file: {name for name, place in where.items() if place == file}
            for file in sorted({*where.values()})
        }
        missing = [path.name for path in found if not path.is_file()]
        if missing:
            raise UserError(f"expected {len(found)} shards in '{folder}', {some(missing)} missing; download again")
        return found
    if (folder / SINGLE).is_file():
        return {folder / SINGLE: None}
    pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if pickles:
        raise UserError(
            f"expected safetensors in '{folder}', got pickles ({some(pickles)}), which can run any code when opened; "
            "get the model as safetensors"
        )
    raise UserError(f"expected {SINGLE}, or shards with their index, in '{folder}', got neither")


def write_tensors(
    folder: Path, stream: Callable[[], Iterable[tuple[str, Tensor]]], *, max_shard_bytes: int
) -> list[Path]:
    """Write tensors as shards of at most so many bytes, each gathered and written before the next.

    Args:
        folder: where to; it exists.
        stream: gives (name, tensor) pairs, the same names and sizes at each call. It is called twice: once for the
            sizes, from which the names of the shards follow, and once to write.
        max_shard_bytes: a larger tensor gets a shard of its own.

    Returns:
        The files.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as name:
        ...     files = write_tensors(Path(name), lambda: {"a": torch.zeros(3)}.items(), max_shard_bytes=100)
        ...     files[0].name, [(key, value.tolist()) for key, value in read_tensors(Path(name))]
        ('model.safetensors', [('a', [0.0, 0.0, 0.0])])
    """
    plan: list[list[str]] = [[]]
    filled = total = 0
    for name, tensor in stream():
        if plan[-1] and filled + tensor.nbytes > max_shard_bytes:
            plan.append([])
            filled = 0
        plan[-1].append(name)
        filled += tensor.nbytes
        total += tensor.nbytes
    names = [SINGLE] if len(plan) == 1 else [_shard_name(number, len(plan)) for number in range(len(plan))]
    tensors = iter(stream())
    for name, keys in zip(names, plan, strict=True):
        write_file(folder / name, {key: next(tensors)[1] for key in keys})
    if len(plan) > 1:
        where = {key: name for name, keys in zip(names, plan, strict=True) for key in keys}
        text = json.dumps({"metadata": {"total_size": total}, "weight_map": where}, indent=2)
        (folder / INDEX).write_text(text + "\n", encoding="utf-8")
    return [folder / name for name in names]


def write_file(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write one safetensors file.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_file(Path(folder, "a.safetensors"), {"a": torch.ones(2)})
        ...     next(read_file(Path(folder, "a.safetensors")))
        ('a', tensor([1., 1.]))
    """
    # clone: what a view shares with others must not be written twice or refused.
    whole = {name: t.detach().cpu().clone(memory_format=torch.contiguous_format) for name, t in tensors.items()}
    _safetensors().torch.save_file(whole, path, metadata={"format": "pt"})


def _shard_name(number: int, count: int) -> str:
    return f"model-{number + 1:05d}-of-{count:05d}.safetensors"


def some(names: list[str]) -> str:
    """The first few names of a list, for a message.

    Example:
        >>> some(["a", "b", "c", "d", "e"])
        'a, b, c and 2 more'
    """
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
