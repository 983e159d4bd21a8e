"""What a Triton kernel needs of a GPU that is not there: registers, spilled bytes and shared memory, for sm_90."""

import contextlib
import io
import re
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from mixtura.kernels.triton.launch import Launch

TARGET = GPUTarget("cuda", 90, 32)
SHARED_MEMORY = 227 * 1024  # of one block on sm_90
_TYPES = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.int64: "i64",
    torch.int32: "i32",
}


def source_of(launch: Launch) -> ASTSource:
    """The kernel specialised as its launcher would do it: on types, on multiples of 16 and on ones."""
    signature: dict[str, str] = {}
    constants: dict[str, Any] = {}
    attributes: dict[tuple[int], list[list[Any]]] = {}
    for place, parameter in enumerate(launch.kernel.params):
        name, value = parameter.name, launch.arguments[parameter.name]
        if parameter.is_constexpr or value is None or (isinstance(value, int) and value == 1):
            signature[name], constants[name] = "constexpr", value
            continue
        signature[name] = f"*{_TYPES[value.dtype]}" if isinstance(value, Tensor) else "i32"
        if isinstance(value, Tensor) or value % 16 == 0:
            attributes[place,] = [["tt.divisibility", 16]]
    return ASTSource(fn=launch.kernel, signature=signature, constexprs=constants, attrs=attributes)


def resources(launch: Launch) -> dict[str, Any]:
    """Compile, and read what the assembler says."""
    log = io.StringIO()
    with triton.knobs.nvidia.scope(), triton.knobs.compilation.scope(), contextlib.redirect_stdout(log):
        triton.knobs.nvidia.dump_ptxas_log = True
        triton.knobs.compilation.always_compile = True  # a cached kernel has no log
        compiled = triton.compile(source_of(launch), target=TARGET, options=launch.config.options())
    text = log.getvalue()
    ptx = compiled.asm["ptx"]
    return {
        "registers": _number(r"Used (\d+) registers", text),
        "spilled bytes": _number(r"(\d+) bytes spill stores", text) + _number(r"(\d+) bytes spill loads", text),
        "shared memory": compiled.metadata.shared,
        "serialized": "serialized" in text,  # the assembler could not let products of a warp group overlap
        "products": "wgmma" if "wgmma.mma_async" in ptx else "mma" if "mma.sync" in ptx else "fma",
    }


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    if found is None:
        raise RuntimeError(f"expected {pattern!r} in the assembler's log, got {text!r}")
    return int(found[1])
