"""How fast is a layer on a GPU beside those of others, forward and backward?

    python -m benchmarks.layer --device cuda

New inputs at every repeat, so that the experts' counts change; the layers in turn; whatever is not installed is skipped
by name. `--device cpu --shapes tiny` with TRITON_INTERPRET=1 is a dry run of the benchmark itself.
"""

import argparse
import json
import statistics
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import nn

from benchmarks.common import save
from benchmarks.gpu_peers import LAYERS
from benchmarks.kernels import DTYPES, SHAPES
from benchmarks.launches import Shape
from benchmarks.timing import product_ceiling, seconds_of

COMPARED = ["training", "64 rows per expert", "decoding", "many experts"]
PACKAGES = ("torch", "triton", "transformers", "scattermoe", "megablocks", "sonic-moe")


def build(shape: Shape, *, device: str, dtype: torch.dtype) -> tuple[dict[str, nn.Module], list[str]]:
    """The layers that are installed, and the names of the others."""
    layers, missing = {}, []
    for name, make in LAYERS.items():
        try:
            layers[name] = make(shape).to(device=device, dtype=dtype)
        except ModuleNotFoundError as error:
            missing.append(f"{name}: no module {error.name}")
    return layers, missing


def step(layer: nn.Module, x_TD: torch.Tensor, dy_TD: torch.Tensor) -> None:
    """A forward and a backward pass."""
    layer(x_TD).backward(dy_TD)


def kept_bytes(layer: nn.Module, x_TD: torch.Tensor) -> int:
    """What a forward pass leaves allocated for the backward pass, parameters, input and output aside."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    y_TD = layer(x_TD)
    return torch.cuda.memory_allocated() - before - y_TD.untyped_storage().nbytes()


def compare(name: str, *, device: str, dtype: str, repeats: int) -> dict[str, Any]:
    """Time every layer at one shape."""
    shape, torch_dtype = SHAPES[name], DTYPES[dtype]
    layers, missing = build(shape, device=device, dtype=torch_dtype)
    ceiling = product_ceiling(torch_dtype, device=device, repeats=10)
    seconds: dict[str, list[float]] = {layer: [] for layer in layers}
    for repeat in range(repeats + 5):
        for layer_name, layer in layers.items():
            layer.zero_grad(set_to_none=True)
            x_TD, dy_TD = (torch.randn(shape.tokens, shape.dim, device=device, dtype=torch_dtype) for _ in range(2))
            x_TD.requires_grad_()
            taken = seconds_of(lambda layer=layer, x=x_TD, dy=dy_TD: step(layer, x, dy), device=device)
            if repeat >= 5:  # compiled and warmed up
                seconds[layer_name].append(taken)
    rows = {}
    for layer_name, times in seconds.items():
        middle = statistics.median(times)
        low, _, high = statistics.quantiles(times, n=4)
        rows[layer_name] = {
            "ms": round(1e3 * middle, 3),
            "quartiles": [round(1e3 * low, 3), round(1e3 * high, 3)],
            "share of ceiling": round(3 * shape.flops(gated=True) / middle / ceiling, 3),
        }
        if device != "cpu":
            x_TD = torch.randn(shape.tokens, shape.dim, device=device, dtype=torch_dtype, requires_grad=True)
            rows[layer_name]["MB kept"] = round(kept_bytes(layers[layer_name], x_TD) / 1e6, 1)
    result = {"shape": name, "dtype": dtype, "ceiling TFLOP/s": round(ceiling / 1e12, 3), "missing": missing}
    print(json.dumps({**result, "layers": rows}, indent=1), flush=True)
    return {**result, "layers": rows}


def versions() -> dict[str, str]:
    """Of every package that takes part."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "missing"
    return found


def main(arguments: list[str] | None = None) -> None:
    """Measure every shape, print, and write benchmarks/results/layer_cuda.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=COMPARED)
    parser.add_argument("--repeats", type=int, default=30)
    options = parser.parse_args(arguments)
    rows = [
        compare(name, device=options.device, dtype=options.dtype, repeats=options.repeats) for name in options.shapes
    ]
    if options.device != "cpu":
        facts = {"device": torch.cuda.get_device_name(), "versions": versions()}
        print(save("layer_cuda", {**facts, "shapes": {n: asdict(s) for n, s in SHAPES.items()}, "rows": rows}))


if __name__ == "__main__":
    main()
