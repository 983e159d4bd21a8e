"""The rule that picks a kernel for a GPU."""

import pytest
import torch

from mixtura.kernels import choice, use
from mixtura.kernels.choice import choose_for_gpu


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("rows", [0.5, 64.0, 1e6])
def test_triton_wherever_it_can_compute_until_something_else_was_measured(dtype, rows):
    assert choose_for_gpu(dtype=dtype, rows_per_expert=rows, triton=True).kernel == "triton"


def test_a_measured_crossover_replaces_the_rule(monkeypatch):
    monkeypatch.setitem(choice.CROSSOVER, torch.bfloat16, 512.0)
    chosen = [choose_for_gpu(dtype=torch.bfloat16, rows_per_expert=rows, triton=True) for rows in (511.0, 512.0)]
    assert [kernel for kernel, _ in chosen] == ["triton", "grouped_mm"]
    assert "512" in chosen[1].reason
    assert choose_for_gpu(dtype=torch.float32, rows_per_expert=512.0, triton=True).kernel == "triton"


def test_without_triton_or_in_float64_torch_computes_and_the_reason_says_so():
    missing = choose_for_gpu(dtype=torch.bfloat16, rows_per_expert=1.0, triton=False)
    assert (missing.kernel, "mixtura[gpu]" in missing.reason) == ("cpu", True)
    double = choose_for_gpu(dtype=torch.float64, rows_per_expert=1.0, triton=True)
    assert (double.kernel, "float64" in double.reason) == ("cpu", True)


def test_nothing_around_the_products_is_fused_on_a_cpu_even_where_triton_is_forced():
    with use("triton"):
        assert not choice.is_fused(torch.zeros(1))
        assert choice.choose("cpu", torch.float32, rows_per_expert=1.0).kernel == "triton"


def test_the_fused_router_takes_what_fits(monkeypatch):
    monkeypatch.setattr(choice, "is_fused", lambda tensor: True)
    assert choice.can_fuse_router(torch.zeros(1, 512), k=16)
    assert not choice.can_fuse_router(torch.zeros(1, 513), k=16)
    assert not choice.can_fuse_router(torch.zeros(1, 512), k=17)
