"""The choice of a kernel."""

import threading

import pytest
import torch

from mixtura import UserError, kernels
from mixtura.kernels import choice, native
from tests.kernels.cases import Operands, make_index


@pytest.fixture(autouse=True)
def without_native(monkeypatch):
    """Choose as where nothing is compiled, so that the choice is the same on every machine."""
    monkeypatch.setenv(native.VARIABLE, "off")


def test_use_forces_a_kernel_and_restores_the_one_before():
    assert kernels.describe()["kernel"] == "cpu"
    with kernels.use("reference"):
        assert kernels.describe()["kernel"] == "reference"
        assert "forced" in kernels.describe()["reason"]
        with kernels.use("cpu"):
            assert kernels.describe()["kernel"] == "cpu"
        assert kernels.describe()["kernel"] == "reference"
    assert kernels.describe()["kernel"] == "cpu"


def test_use_restores_after_an_error():
    with pytest.raises(ZeroDivisionError), kernels.use("reference"):
        raise ZeroDivisionError
    assert kernels.describe()["kernel"] == "cpu"


def test_use_holds_for_its_own_thread_only():
    seen = []
    with kernels.use("reference"):
        thread = threading.Thread(target=lambda: seen.append(kernels.describe()["kernel"]))
        thread.start()
        thread.join()
    assert seen == ["cpu"]


def test_an_unknown_kernel_names_the_known_ones():
    with (
        pytest.raises(UserError, match=r"expected a kernel among \['cpu', .*'triton'\], got 'fast'"),
        kernels.use("fast"),
    ):
        pass


def test_grouped_mlp_calls_the_kernel_in_use(monkeypatch):
    index = make_index([[0], [1]], num_experts=2)
    operands = Operands.random(index, activation="relu", bias=True)
    called = []
    for name, kernel in list(kernels.KERNELS.items()):

        def spy(*args, name=name, kernel=kernel, **kwargs):
            called.append(name)
            return kernel(*args, **kwargs)

        monkeypatch.setitem(kernels.KERNELS, name, spy)
    chosen = operands.run(kernels.grouped_mlp, index)
    with kernels.use("reference"):
        torch.testing.assert_close(operands.run(kernels.grouped_mlp, index), chosen)
    assert called == ["cpu", "reference"]


def test_describe_tells_the_machine():
    described = kernels.describe()
    assert described["torch"] == torch.__version__
    assert described["threads"] == str(torch.get_num_threads())


def test_native_that_is_off_says_so_and_cannot_be_forced():
    described = kernels.describe()
    assert described["native"] == "$MIXTURA_NATIVE is off"
    assert described["reason"] == "native cannot run: $MIXTURA_NATIVE is off"
    with pytest.raises(UserError, match="MIXTURA_NATIVE is off"), kernels.use("native"):
        pass


def test_describe_tells_what_a_gpu_would_get(monkeypatch):
    monkeypatch.setattr(choice, "has_triton", lambda: True)
    assert kernels.describe("cuda", dtype=torch.bfloat16)["kernel"] == "triton"
    assert kernels.describe("cuda", dtype=torch.float64)["kernel"] == "cpu"
    monkeypatch.setattr(choice, "has_triton", lambda: False)
    assert "mixtura[gpu]" in kernels.describe("cuda")["reason"]
    with kernels.use("grouped_mm"):
        assert kernels.describe("cuda")["kernel"] == "grouped_mm"
