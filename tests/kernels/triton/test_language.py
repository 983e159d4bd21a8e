"""What the interpreter does differently from a GPU, put right in one place."""

import sys
from importlib.util import module_from_spec, spec_from_file_location

import pytest
import torch

from mixtura import UserError
from mixtura.kernels.triton import language
from mixtura.kernels.triton.language import INTERPRETED, dot, narrow, tl, triton


@triton.jit
def product_kernel(a, b, wide, rounded):
    i = tl.arange(0, 16)
    place = i[:, None] * 16 + i[None, :]
    acc = dot(tl.load(a + place), tl.load(b + place), tl.zeros((16, 16), dtype=tl.float32))
    tl.store(wide + place, acc)
    tl.store(rounded + place, narrow(acc, rounded.dtype.element_ty))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_products_are_exact_and_rounded_to_the_nearest_as_on_a_gpu(dtype):
    a, b = torch.randn(16, 16).to(dtype), torch.randn(16, 16).to(dtype)
    wide, rounded = torch.empty(16, 16), torch.empty(16, 16, dtype=dtype)
    product_kernel[(1,)](a, b, wide, rounded)
    torch.testing.assert_close(wide, a.float() @ b.float())
    assert torch.equal(rounded, wide.to(dtype))


def test_tests_are_interpreted():
    assert INTERPRETED


def test_a_missing_triton_is_one_line_that_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    spec = spec_from_file_location("language_again", language.__file__)
    with pytest.raises(UserError, match=r"the triton kernels need the package triton: pip install 'mixtura\[gpu\]'"):
        spec.loader.exec_module(module_from_spec(spec))
