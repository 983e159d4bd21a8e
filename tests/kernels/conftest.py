"""The fixture `kernel`: each fast kernel, with every way in which it may do its work."""

import platform

import pytest

from mixtura.kernels import cpu, native
from mixtura.kernels import layout as layout_module
from mixtura.kernels.build import variants
from mixtura.kernels.layout import Partition


def alone(counts, *, macs_per_row):
    return Partition(list(range(len(counts))), [1] * len(counts), list(counts))


def together(counts, *, macs_per_row):
    return Partition(list(range(len(counts))), [len(counts)], [max(counts) and max(counts) + 3])


def in_pairs(counts, *, macs_per_row):
    order = sorted(range(len(counts)), key=counts.__getitem__)
    pairs = [order[i : i + 2] for i in range(0, len(order), 2)]
    return Partition(order, [len(pair) for pair in pairs], [max(counts[e] for e in pair) for pair in pairs])


LAYOUTS = {"alone": alone, "together": together, "in pairs": in_pairs, "chosen": layout_module.partition}
VARIANTS = [name for name, _ in variants(platform.machine())]


def force_variant(patch: pytest.MonkeyPatch, name: str) -> None:
    """Make `native` run one set of instructions; skips where it cannot."""
    if reason := native.library().reason:
        pytest.skip(f"native kernel: {reason}")
    if name not in native.library().variants:
        pytest.skip(f"this processor has no {name}")
    patch.setenv(native.VARIABLE, name)


@pytest.fixture(params=LAYOUTS)
def layout(request, monkeypatch):
    """Force a grouping of the experts; "chosen" leaves it to the kernel."""
    monkeypatch.setattr(layout_module, "partition", LAYOUTS[request.param])
    return request.param


@pytest.fixture(params=VARIANTS)
def variant(request, monkeypatch):
    """Force a set of instructions of the native kernel."""
    force_variant(monkeypatch, request.param)
    return request.param


@pytest.fixture(params=[*(f"cpu, {name}" for name in LAYOUTS), *(f"native, {name}" for name in VARIANTS)])
def kernel(request, monkeypatch):
    """Give a kernel and force one of its ways: a grouping of `cpu`, a set of instructions of `native`."""
    name, way = request.param.split(", ")
    if name == "cpu":
        monkeypatch.setattr(layout_module, "partition", LAYOUTS[way])
        return cpu.grouped_mlp
    force_variant(monkeypatch, way)
    return native.grouped_mlp
