"""The dense parts beside torch's in float64, for every set of instructions."""

import pytest
import torch
from torch.nn import functional as F  # noqa: N812  # torch's own customary name

from mixtura import UserError, kernels
from mixtura.kernels import dense, native
from mixtura.models.fused import normalise_and_turn
from tests.kernels.cases import error

EPSILON = 0.1  # large, so that it counts


def random(*shape, scale=1.0):
    return (scale * torch.randn(shape, dtype=torch.float64)).requires_grad_()


def floats(*tensors):
    return [tensor.detach().float() for tensor in tensors]


@pytest.mark.parametrize(("rows", "dim"), [(1, 1), (3, 7), (129, 16), (300, 33), (5, 100), (0, 4)])
@pytest.mark.usefixtures("variant", "poison")
def test_norm(rows, dim):
    x, weight, dy = random(rows, dim), random(dim), random(rows, dim)
    expected = F.rms_norm(x, (dim,), weight, EPSILON)
    dx, dweight = torch.autograd.grad(expected, [x, weight], dy)
    x, weight, dy = floats(x, weight, dy)
    y, inverse = dense.norm(x, weight, epsilon=EPSILON)
    assert error(y, expected) < 1e-6
    got = dense.norm_grad(dy, x, weight, inverse_N=inverse)
    assert error(got[0], dx) < 1e-5
    assert error(got[1], dweight) < 1e-5


def attention(x, cos, sin):
    """As torch composes it."""
    q, k, v = x.chunk(3, dim=2)
    q, k = normalise_and_turn(q, cos, sin), normalise_and_turn(k, cos, sin)
    q, k, v = (part.transpose(1, 2) for part in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("width", [2, 6, 16, 34])
@pytest.mark.parametrize("length", [1, 5, 32, 67])
@pytest.mark.usefixtures("variant", "poison")
def test_attention(length, width, heads):
    assert dense.can_attend(length, width)
    x, dy, angle = (
        random(2, length, 3 * heads, width, scale=3.0),
        random(2, length, heads, width),
        random(length, width // 2),
    )
    expected = attention(x, angle.cos(), angle.sin())
    (dx,) = torch.autograd.grad(expected, x, dy)
    x, dy, cos, sin = floats(x, dy, angle.cos(), angle.sin())
    y, sums = dense.attend(x, cos, sin, epsilon=torch.finfo(torch.float64).eps)
    assert error(y, expected) < 1e-5
    got = dense.attend_grad(dy, x, cos, sin=sin, y_BLHd=y, sums_BHL=sums, epsilon=torch.finfo(torch.float64).eps)
    assert error(got, dx) < 1e-5


@pytest.mark.usefixtures("variant")
def test_a_later_token_changes_nothing_before_it():
    x, one = torch.randn(1, 40, 3, 4), torch.ones(40, 2)
    other = x.clone()
    other[0, 21] *= -1e3
    (y, _), (changed, _) = (dense.attend(x, one, 0 * one, epsilon=EPSILON) for x in (x, other))
    assert torch.equal(y[:, :21], changed[:, :21])
    assert (y[:, 21:] != changed[:, 21:]).all()


@pytest.mark.usefixtures("variant")
def test_a_head_beyond_the_scratch_memory_is_refused():
    assert not dense.can_attend(1 << 16, 64)


@pytest.mark.parametrize(("rows", "vocab"), [(1, 1), (4, 2), (130, 16), (7, 257), (300, 40)])
@pytest.mark.usefixtures("variant", "poison")
def test_cross_entropy(rows, vocab):
    logits, target = random(rows, vocab, scale=20.0), torch.randint(vocab, (rows,))
    expected = F.cross_entropy(logits, target, reduction="none")
    (slope,) = torch.autograd.grad(expected.sum(), logits)
    (got,) = floats(logits)
    nats = dense.cross_entropy_(got, target, scale=0.5)
    torch.testing.assert_close(nats.double(), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(got.double(), 0.5 * slope, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("target", [-1, 3])
@pytest.mark.usefixtures("variant")
def test_a_target_outside_the_vocabulary_is_refused(target):
    logits = torch.zeros(2, 3)
    with pytest.raises(UserError, match=f"expected targets from 0 to 2, got {min(target, 1)} to {max(target, 1)}"):
        dense.cross_entropy_(logits, torch.tensor([1, target]), scale=1.0)
    assert not logits.any()


class TestCanRun:
    @pytest.fixture(autouse=True)
    def library(self):
        if native.availability():
            pytest.skip(f"native kernel: {native.availability()}")

    def test_plain_fp32_on_a_cpu_alone(self):
        x = torch.zeros(2)
        assert dense.can_run(x, torch.nn.Parameter(x))
        assert not dense.can_run(x, x.double())
        assert not dense.can_run(x.to("meta"))

    def test_not_where_another_kernel_is_forced(self):
        with kernels.use("reference"):
            assert not dense.can_run(torch.zeros(2))
        with kernels.use("native"):
            assert dense.can_run(torch.zeros(2))

    def test_not_where_the_library_is_off(self, monkeypatch):
        monkeypatch.setenv(native.VARIABLE, "off")
        assert not dense.can_run(torch.zeros(2))

    def test_results_do_not_depend_on_threads(self):
        x, angle = torch.randn(2, 33, 9, 6), torch.randn(33, 3)
        results = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            y, sums = dense.attend(x, angle.cos(), angle.sin(), epsilon=EPSILON)
            known = {"sin": angle.sin(), "y_BLHd": y, "sums_BHL": sums, "epsilon": EPSILON}
            results.append((y, dense.attend_grad(y, x, angle.cos(), **known)))
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
