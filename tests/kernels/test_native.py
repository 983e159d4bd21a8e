"""What is particular to the compiled kernel; test_compare.py compares it with the reference."""

import pytest
import torch

from mixtura import UserError, kernels
from mixtura.kernels import build, native, reference
from mixtura.kernels.activations import ACTIVATIONS
from tests.kernels.cases import Operands, error, make_index

needs_library = pytest.mark.skipif(bool(native.library().reason), reason=f"native kernel: {native.library().reason}")


def compare(operands, index, *, limit=1e-5):
    dy_ND = torch.randn(index.token_N.shape[0], operands.x.shape[1]).to(operands.x.dtype)
    exact = operands.cast(torch.float64)
    expected = exact.results(reference.grouped_mlp, index, dy_ND.double())
    got = operands.results(native.grouped_mlp, index, dy_ND)
    for name, value in expected.items():
        assert error(got[name], value) < limit, name


def choices(tokens, *, num_experts, k=1):
    return [[(t * (3 + j) + j) % num_experts for j in range(k)] for t in range(tokens)]


# Odd sizes, and sizes beyond each of the blocks of csrc/simd.h: 256 and 1024 of depth, 256 columns, 1024 rows.
SIZES = {
    "beyond the depth of one pass": {"dim": 1100, "hidden": 70},
    "hidden beyond the depth of one pass": {"dim": 31, "hidden": 1057},
    "several blocks of columns": {"dim": 33, "hidden": 530},
    "a bf16 pass of pairs": {"dim": 2053, "hidden": 17},
}


@pytest.mark.parametrize("sizes", SIZES.values(), ids=list(SIZES))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("form", ["halves", "woven and transposed"])
@pytest.mark.parametrize("tokens", [10, 37], ids=["few", "many"])  # few: matrices are read in place
@pytest.mark.usefixtures("variant", "poison")
def test_every_block(sizes, dtype, form, tokens):
    index = make_index(choices(tokens, num_experts=3, k=2), num_experts=3)
    activation = "swiglu" if form == "halves" else "woven_swiglu"
    operands = Operands.random(index, activation=activation, bias=True, **sizes).cast(dtype)
    if form != "halves":
        for name in ("up", "down"):
            setattr(operands, name, getattr(operands, name).detach().mT.contiguous().mT.requires_grad_())
    compare(operands, index, limit=1e-5 if dtype is torch.float32 else 2e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.usefixtures("variant", "poison")
def test_one_expert_with_more_rows_than_a_task_or_a_pass_takes(dtype):
    index = make_index([[0]] * 2301 + [[1]] * 3, num_experts=2)
    operands = Operands.random(index, activation="gelu", bias=True, dim=9, hidden=20).cast(dtype)
    compare(operands, index, limit=1e-5 if dtype is torch.float32 else 2e-2)


@pytest.mark.parametrize("activation", sorted(native.ACTIVATION_CODES))
@pytest.mark.usefixtures("variant")
def test_activations_over_their_whole_range(activation):
    """One expert that passes its input on, so that the result is the activation itself."""
    z = torch.cat([torch.linspace(-100, 100, 4001), torch.tensor([0.0, -0.0, 1e-30, -1e-30, 1e30, -1e30])])
    index = make_index([[0]] * len(z), num_experts=1)
    operands = Operands.random(index, activation=activation, bias=False, dim=1, hidden=1)
    with torch.no_grad():
        operands.x.copy_(z.unsqueeze(1))
        for leaf in (operands.weight, operands.up, operands.down):
            leaf.fill_(1)
    got = operands.results(native.grouped_mlp, index, torch.ones(len(z), 1))
    exact = operands.cast(torch.float64).results(reference.grouped_mlp, index, torch.ones(len(z), 1).double())
    for name in ("output", "x"):
        difference = (got[name] - exact[name]).abs() / exact[name].abs().clamp(min=1e-2)
        assert difference.nan_to_num(posinf=0).max() < 3e-6, name


@needs_library
@pytest.mark.parametrize(("tokens", "hidden"), [(300, 300), (12, 2100)], ids=["many", "few"])
def test_threads_do_not_change_a_bit(tokens, hidden):
    index = make_index(choices(tokens, num_experts=5, k=2), num_experts=5)
    operands = Operands.random(index, activation="swiglu", bias=True, dim=40, hidden=hidden)
    dy_ND = torch.randn(2 * tokens, 40)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(operands.results(native.grouped_mlp, index, dy_ND))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(other[name], value) for name, value in results[0].items())


@needs_library
def test_without_openmp_it_says_that_it_has_one_thread(monkeypatch):
    monkeypatch.setattr(native.library().functions, "mixtura_has_threads", lambda: 0)
    assert "on one thread" in native.instructions()


@needs_library
def test_operands_that_are_not_contiguous():
    index = make_index(choices(20, num_experts=3, k=2), num_experts=3)
    operands = Operands.random(index, activation="silu", bias=True)
    expected = operands.results(reference.grouped_mlp, index, torch.ones(40, 5))
    with torch.no_grad():
        for name in ("x", "up", "down"):
            leaf = getattr(operands, name)
            turned = leaf.transpose(-1, -2).contiguous().transpose(-1, -2)
            setattr(operands, name, turned.requires_grad_())
    got = operands.results(native.grouped_mlp, index, torch.ones(1).expand(40, 5))
    for name, value in expected.items():
        assert error(got[name], value) < 1e-5, name


@needs_library
def test_it_is_chosen_where_it_can_run_and_nowhere_else(monkeypatch):
    monkeypatch.delenv(native.VARIABLE, raising=False)
    assert kernels.describe()["kernel"] == "native"
    assert kernels.describe()["native"] == native.library().variants[0]
    index = make_index([[0], [1]], num_experts=2)
    called = []
    for name, kernel in list(kernels.KERNELS.items()):

        def spy(*args, name=name, kernel=kernel, **kwargs):
            called.append(name)
            return kernel(*args, **kwargs)

        monkeypatch.setitem(kernels.KERNELS, name, spy)
    operands = Operands.random(index, activation="relu", bias=True)
    operands.run(kernels.grouped_mlp, index)
    operands.cast(torch.float64).run(kernels.grouped_mlp, index)
    assert called == ["native", "cpu"]


def test_every_activation_is_known():
    assert set(ACTIVATIONS) == set(native.ACTIVATION_CODES)


@needs_library
def test_transformed_calls_go_through_the_op():
    index = make_index([[0], [1], [1]], num_experts=2)
    operands = Operands.random(index, activation="silu", bias=True)
    stacked, weight_N = operands.stacked(), operands.weight
    (expected,) = torch.autograd.grad(operands.run(native.grouped_mlp, index).sum(), operands.x)
    got = torch.func.grad(lambda x: native.grouped_mlp(x, weight_N, index, experts=stacked).sum())(operands.x)
    assert torch.equal(got, expected)


@needs_library
def test_operands_that_it_does_not_know_are_refused_where_it_is_forced():
    index = make_index([[0], [1]], num_experts=2)
    operands = Operands.random(index, activation="relu", bias=False).cast(torch.float64)
    with pytest.raises(UserError, match="float64"), kernels.use("native"):
        operands.run(kernels.grouped_mlp, index)


@needs_library
def test_an_unknown_variant_names_the_known_ones(monkeypatch):
    monkeypatch.setenv(native.VARIABLE, "mmx")
    with pytest.raises(UserError, match=r"expected \$MIXTURA_NATIVE among \['.*'off'\], got 'mmx'"):
        native.variant()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(1, 1, dtype=torch.float16)}, "float16"),
        ({"activation": "tanh"}, "'tanh' is not among"),
        ({"up": torch.zeros(1, 1, 1, dtype=torch.float64)}, "differ in dtype"),
        ({"x": torch.zeros(1, 1, device="meta")}, "device meta"),
    ],
)
def test_what_is_not_supported_says_why(change, message):
    one = torch.zeros(1, 1, 1)
    values = {"x": torch.zeros(1, 1), "up": one, "activation": "relu", **change}
    experts = kernels.StackedMLP(values["up"], one, None, None, values["activation"])
    assert message in native.unsupported(values["x"], experts)


def test_a_library_that_is_missing_outdated_or_broken(monkeypatch, tmp_path):
    monkeypatch.setattr(build, "LIBRARY", tmp_path / "none.so")
    load = native.library.__wrapped__
    assert "was not compiled" in load().reason
    (tmp_path / "none.so").write_bytes(b"no library")
    assert "does not load" in load().reason


@needs_library
def test_a_library_of_other_sources_is_not_used(monkeypatch):
    monkeypatch.setattr(build, "fingerprint", lambda: "0" * 16)
    assert "other sources" in native.library.__wrapped__().reason
