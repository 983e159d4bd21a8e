"""A launch as a value: what the ops run is what `benchmarks/kernels.py` compiles without a GPU, by construction."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mixtura.kernels.triton.configs import Config
from mixtura.kernels.triton.language import INTERPRETED

H200_PROCESSORS = 132
# Of one processor: with up to 255 registers in a thread no more are at work at once.
_WARPS = 8
# Few, so that every program of a test meets more than one tile.
INTERPRETED_PROGRAMS = 2


@dataclass(frozen=True, kw_only=True)
class Launch:
    """One kernel with its arguments.

    Attributes:
        name: for reports.
        kernel: a function under `triton.jit`.
        grid: how many programs, by axis.
        arguments: every parameter of the kernel, by name; on the meta device where it is only compiled.
        config: warps and stages; its tile sizes stand among the arguments.
    """

    name: str
    kernel: Any
    grid: tuple[int, ...]
    arguments: Mapping[str, Any]
    config: Config

    def run(self) -> None:
        """Start the kernel, unless there is nothing for it to do."""
        if 0 in self.grid:
            return
        if INTERPRETED:
            self.kernel[self.grid](**self.arguments)
            return
        # Triton starts on the current device, wherever the tensors lie.
        with torch.cuda.device(next(value.device for value in self.arguments.values() if isinstance(value, Tensor))):
            self.kernel[self.grid](**self.arguments, **self.config.options())


def num_programs(device: torch.device, *, tiles: int, config: Config) -> int:
    """Size of a persistent grid: as many programs as the device runs at once, at most one for each tile.

    Example:
        >>> config = Config(64, 64, 64, num_warps=4, num_stages=3)
        >>> num_programs(torch.device("meta"), tiles=7, config=config)
        7
        >>> num_programs(torch.device("meta"), tiles=10**6, config=config)
        264
    """
    if device.type == "cuda":
        processors = torch.cuda.get_device_properties(device).multi_processor_count
    else:
        processors = INTERPRETED_PROGRAMS if device.type == "cpu" else H200_PROCESSORS
    return max(1, min(tiles, processors * max(1, _WARPS // config.num_warps)))
